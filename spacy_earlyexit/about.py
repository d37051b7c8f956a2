__title__ = "spacy-earlyexit"
__version__ = "0.1.0"
