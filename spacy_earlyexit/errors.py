"""Messages for people: what was found, what was expected, which setting mends it."""


class Errors:
    E001 = (
        "Can't load the encoder '{name}': {error}. Set `name` in [components.{component}.model] to "
        "a folder with config.json, tokenizer.json and the weights, or to a name of the Hugging "
        "Face hub, which needs a network connection."
    )
    E002 = (
        "The encoder '{name}' is of the family '{family}', which is not supported. "
        "Supported families: {supported}. Change `name` in [components.{component}.model]."
    )
    E003 = (
        "The tokenizer of '{name}' has no fast (tokenizers library) version, which is needed to "
        "align pieces with words. Choose an encoder with a tokenizer.json."
    )
    E004 = (
        "'{component}' has no weights yet. Call nlp.initialize() to load the encoder '{name}', or "
        "load a trained pipeline with spacy.load(). (In frozen_components of [training] it is not "
        "initialised: take it out, or give it `source`.)"
    )
    E005 = "`{setting}` has to be in [0, 1] ({what}), but is {value!r}."
    E006 = "`window` has to be a whole number of words >= 0, but is {value!r}."
    E007 = (
        "`threshold` names {n_given} layers, but the encoder has {n_layers}. "
        "Give one threshold, or one per layer."
    )
    E008 = "`{setting}` has to be in 1..{n_layers} for this encoder, but is {layer}."
    E009 = (
        "Unknown operating point '{name}'. This pipeline has: {points}. Set `exit` to one of them, "
        "to a criterion such as spacy-earlyexit.TokenExit.v1, or to 'full' for full depth."
    )
    E010 = (
        "`exit` has to be 'full' (full depth), null (at load: as stored), the name of an operating "
        "point, or a criterion (a block with @misc = spacy-earlyexit.TokenExit.v1, SentenceExit.v1 "
        "or FixedExit.v1, or an object of spacy_earlyexit.model.criteria), but is {value!r}."
    )
    E011 = (
        "Unknown task '{task}'. Registered tasks: {tasks}. Fix `tasks` in "
        "[components.{component}], name the file that registers it with --code, or register a "
        "class under the entry point group 'spacy_earlyexit_tasks'."
    )
    E012 = (
        "Can't tell which tasks '{name}' should learn to exit by: `tasks` is null, no component "
        "behind it (such as earlyexit_ner) names one, and the {n_docs} training examples have gold "
        "for none of {tasks}. Either set `tasks` in [components.{name}] to an auxiliary task and "
        'annotate it, for example tasks = ["pos"]; or set tasks = [] and exit = {{"@misc": '
        '"spacy-earlyexit.FixedExit.v1", "layer": 6}}, which needs none.'
    )
    E013 = (
        "None of the {n_docs} training examples has gold annotation for the task {what}. Annotate "
        "some documents; or learn without: take the components that need {names} out of `pipeline` "
        "in [nlp], and set `tasks` in [components.{name}] to null or to [{others}]."
    )
    E014 = "'{name}' found no exit scores for the task '{task}' on the Doc {text!r}: {cause}"
    E015 = (
        "'{name}' needs the task '{task}', but the transformer was trained with: {tasks}. "
        "Add '{task}' to `tasks` in [components.{transformer}] and train, or remove '{name}'."
    )
    E016 = (
        "Can't initialise '{name}' from '{path}': {problem}. `init_from` in "
        "[initialize.components.{name}] has to be the folder of a pipeline trained with a "
        "component of that name, for example training/stage1/model-last."
    )
    E017 = (
        "The stage-1 pipeline '{path}' was trained for {old}, this one wants {new}. Both stages "
        "need the same tasks and labels."
    )
    E018 = "`{setting}` has to be {expected}, but is {value!r}."
    E019 = (
        "The span getter returned spans of {n_spans} documents for {n_docs} documents. "
        "Check `get_spans` in [components.transformer.model]."
    )
    E020 = (
        "A MAC speed-up of {target} can't be reached: the largest with this criterion is "
        "{best:.2f}. Ask for less, or use a smaller window."
    )
    E021 = (
        "The Doc {text!r} has no exit layers. Run its text through a pipeline with an "
        "earlyexit_transformer; a DocBin keeps them if it is made with "
        "DocBin(store_user_data=True)."
    )
    E022 = (
        "{criterion} goes by the uncertainty of the off-ramps, but '{name}' has no tasks. Use "
        "spacy-earlyexit.FixedExit.v1 or null, or set `tasks` in [components.{name}] and train."
    )
    E023 = (
        "'{name}' can't rehearse: nlp.rehearse calls the components in a random order and on "
        "copies of their models, which would read this transformer's rows before they are made. "
        "To keep what was learned, mix examples of the old data into nlp.update."
    )
    E024 = (
        "`model` of '{name}' is neither a spacy-earlyexit.MultiExitTransformer.v1 nor a "
        "spacy-transformers.TransformerModel, but '{found}'. Set it in [components.{name}.model]."
    )
    E025 = (
        "`set_extra_annotations` of '{name}' has to be null or spacy-transformers' "
        "null_annotation_setter: other setters need all rows of a batch at one depth."
    )
    E026 = (
        "'{name}' is in no pipeline here, which is needed to score the components behind it. Do "
        "this in the process that loaded the pipeline, without n_process."
    )
    E027 = (
        "The output '{path}' exists and is not an empty folder. Choose another one, or replace it "
        "with --force."
    )
    E028 = (
        "This pipeline has an earlyexit_transformer already: {components}. Only pipelines that use "
        "spacy-transformers' transformer can be converted; train this one on with "
        "configs/self_sampling.cfg."
    )
    E029 = (
        "Exactly one enabled component that is spacy-transformers' transformer is needed, found "
        "{n}. This pipeline has: {components}."
    )
    E030 = (
        "No enabled component listens to '{name}'. This pipeline has: {components}. Those with a "
        "transformer of their own, put in by nlp.replace_listeners: {copies}. Convert a pipeline "
        "whose components have a spacy-transformers.TransformerListener.v1."
    )
    E031 = (
        "There are too few documents: {n_train} to train with, {n_dev} for dev ({path}). At least "
        "one of each is needed, or two to train with if none are given with --dev."
    )
    E032 = (
        "'{path}' annotates labels that '{name}' does not know: {unknown}. It keeps those that it "
        "has: {labels}. Take the others out of the data, or learn from the pipeline's own "
        "predictions with --labels own."
    )
    E033 = (
        "The operating point '{point}' was not reached on dev; in force is full depth. Found were: "
        "{points}. Train longer, or ask for smaller --speedups."
    )
    E034 = (
        "The encoder of '{name}' ({encoder}) is of the family '{family}', which is not supported. "
        "Supported families: {supported}."
    )
    E035 = (
        "There is nothing to calibrate '{name}' on: {n_words} words, and tasks that rule the exit "
        "are needed. Give dev data with text, to a pipeline that was trained with tasks."
    )
    E036 = (
        "The scores of all layers for {n_words:,} words would take {gigabytes:.1f} GiB. Calibrate "
        "on fewer documents with --limit."
    )
    E037 = (
        "The dev data have gold for none of the components behind '{name}', so that nothing can be "
        "scored. Annotate them, or enable the components that they are annotated for."
    )
    E038 = (
        "No run that was faster than full depth stayed within {loss:g} of each of its dev scores "
        "(their mean: {score:.4f}). Allow a larger --max-loss."
    )
    E039 = "There are no words to evaluate on in {path}."
    E040 = (
        "In force stays {criterion}, whose thresholds were chosen at other temperatures. Put a "
        "point in force instead with --exit."
    )
    E041 = "Pictures need matplotlib: pip install 'spacy-earlyexit[plots]'. Or leave --plot out."
    E042 = (
        "'{name}' is disabled, so that there is nothing to measure. Take it out of `disabled` in "
        "[nlp], or call nlp.enable_pipe('{name}')."
    )
    E043 = (
        "'{name}' joins characters into words, after which there is nothing left to learn it from. "
        "Take it out of `annotating_components` in [training]."
    )
    E044 = (
        "'{name}' learns to join characters, but [corpora.{corpus}] makes the gold words of the "
        "text (gold_preproc = true), of which it would only learn that nothing is to be joined. "
        "Set gold_preproc = false there."
    )
    E045 = (
        "The encoder '{name}' has {setting} = {value!r} in its config, but only {expected!r} is "
        "supported. Change `name` in [components.{component}.model]."
    )
    E046 = (
        'precision = "int8" runs on the CPU only, but the weights are on {device}. Set `precision` '
        'in [components.transformer] to "float32", or load the pipeline without the GPU.'
    )
    E047 = (
        'precision = "int8" needs a torch whose oneDNN multiplies int8 matrices exactly, which '
        'this one does not. Set `precision` in [components.transformer] to "float32".'
    )
    E048 = (
        "The operating point '{point}', which was in force, is not among those that were looked "
        "for and is gone; in force is full depth. Keep it with --add, or choose one of {points} "
        "with --exit."
    )
    E049 = (
        "'{name}' joins characters into words, and gold tokens are words already: its text has to "
        "be read anew. Leave --gold-preproc out."
    )
    E050 = (
        "These weights were written by an early version of spacy-earlyexit, which did not say what "
        "they were trained with. Train the pipeline anew, or load it with that version."
    )
    E051 = (
        "`name` in [components.{component}.model] is null, so there is no encoder to load. Set it "
        "to a hub name or folder, or start from a trained pipeline with `init_from` in "
        "[initialize.components.{component}] (--paths.stage1)."
    )
    E052 = (
        "`{setting}` in [components.{component}.model] is {here}, but the weights of {source} were "
        "trained with {stored}. Set `{setting}` to {stored}, or leave it out where you load the "
        "pipeline; to change it, train anew."
    )
    E053 = (
        "A component that listens to '{name}' sent its gradient after the step of its batch was "
        "made: '{name}' predicted other documents, was saved or was updated again before. Update "
        "all components of a batch first (nlp.update does)."
    )
    E054 = (
        '`exit` in [components.{name}] is "custom", which stands for a criterion that is stored '
        "with the pipeline, but there is none. Set `exit` to null, a point's name or a criterion."
    )
    E055 = (
        "`exit` has to be an exit setting, but is the class {name} itself. Make one of it first, "
        "such as TokenExit(0.1, window=2)."
    )
    E056 = (
        "The operating point '{name}' has to be {{\"exit\": a criterion's block or null, …}}, but "
        "is {value!r}. Find points with `python -m spacy earlyexit calibrate`."
    )
    E057 = (
        "'{name}' has `self_sampling`, which is stage 2, but nothing to start from: name the "
        "pipeline of stage 1 with --paths.stage1, or as `init_from` in "
        "[initialize.components.{name}]. For stage 1 set `self_sampling` in [components.{name}] to "
        "null."
    )
    E058 = (
        "These are no weights of an earlyexit_transformer: {problem}. Copy the pipeline's folder "
        "again, or train anew. (A file of Git LFS has to be fetched with `git lfs pull`.)"
    )
    E059 = (
        "These weights hold numbers that are not finite: the training that made them went wrong. "
        "Train anew with a smaller learning rate."
    )
    E060 = (
        "This pipeline was written by spacy-earlyexit {found}, and here is {here}. Install the "
        "later version to load it."
    )
    E061 = (
        "The weights are damaged: their checksum is not the one that was stored with them. Copy "
        "the pipeline's folder again."
    )
    E062 = (
        "'{source}' is damaged: {problem}. Copy the pipeline's folder again, or save the pipeline "
        "anew."
    )
    E063 = (
        "'{source}' can't be read as the model of an earlyexit_transformer: {problem}. Copy the "
        "pipeline's folder again, or train anew. (A file of Git LFS has to be fetched with "
        "`git lfs pull`.)"
    )
    E064 = (
        "'{source}' holds the weights of spacy-transformers' transformer; the factory's name alone "
        'does not make exits of them. Keep the factory "transformer", and make exits with '
        "`python -m spacy earlyexit convert`."
    )
    E065 = (
        "'{source}' does not fit the weights beside it: its {what} are {found}, and those of the "
        "weights {expected}. Copy the pipeline's folder again."
    )
    E066 = (
        "`{setting}` in [components.{name}] is {here}, but the weights of '{source}' were trained "
        "with {stored}. Leave `{setting}` out where you load the pipeline; to change it, train "
        "anew."
    )
    E067 = (
        "'{path}' is of another pipeline: its language is '{found}', and that of config.cfg "
        "'{expected}'. Copy the pipeline's folder again."
    )
    E068 = (
        "The folder '{folder}' holds parts of two pipelines: {files} were not saved together. "
        "Saving was cut off, or files were copied over it. Save the pipeline again, or take "
        "another checkpoint (model-best beside model-last)."
    )
    E069 = (
        "'{path}' is missing: the pipeline was not saved to its end, or copied in part. Copy its "
        "folder again, or train anew."
    )
    E070 = (
        "No operating point was found, and nothing is saved. {reasons} Ask for smaller --speedups, "
        "or train longer."
    )
    E071 = (
        "The operating point '{name}' costs something else when it is loaded again: a MAC speed-up "
        "of {found:.4f}, and {expected:.4f} was measured. Nothing is saved. Please report this."
    )
    E072 = "'{field}' is nothing that is recorded of a token. It can be one of: {fields}."
    E073 = (
        "'{field}' was not recorded on the Doc {text!r}; recorded was: {recorded}. Put "
        '"{field}" into `record` in the block of the earlyexit_transformer in [components], or '
        "into its attribute `record`, and run the text again."
    )
    E074 = (
        '\'{name}\' makes entities of BIO classes ("O", "B-x", "I-x"), but the task \'{task}\' has '
        '{classes}. Set `task` in [components.{name}] to a task of entities, such as "ner".'
    )
    E075 = (
        "no earlyexit_transformer has left any. Either it is missing, disabled or behind '{name}' "
        "in the pipeline, or the Doc was rebuilt or retokenised between the two (Doc.copy, DocBin, "
        "merged tokens)."
    )
    E076 = (
        "`upstream` in [components.{name}] is '{upstream}', but the Doc was encoded by {names}. "
        'Set `upstream` to the transformer\'s name, or to "*" for the nearest in front.'
    )
    E077 = (
        "those that '{transformer}' left were dropped after the last enabled component had read "
        "them. Run the Doc through '{transformer}' again (is it disabled?)."
    )
    E078 = (
        "it has {now} tokens, and had {then} when '{transformer}' encoded it. Put what was "
        "retokenised in between in front of '{transformer}' or behind '{name}'."
    )
    E079 = (
        "'{transformer}' gave scores for: {tasks}. Either it was not trained with '{task}' (add it "
        "to `tasks` in [components.{transformer}] and train, or remove '{name}'), or '{name}' was "
        "disabled when it ran."
    )
    E080 = (
        "'{source}' annotates for the task '{task}' of '{name}' only labels that the pipeline does "
        "not know: {unknown}. It knows: {known}. Take data with its labels, rename them in the "
        "data, or disable '{name}'."
    )
    E081 = (
        "'{source}' has gold for none of the components behind '{name}', so that nothing can be "
        "scored. What they need: {what}. Annotate it, or take other data."
    )
    E082 = "Peak memory needs psutil on this system: pip install 'spacy-earlyexit[benchmark]'."
    E083 = "'{path}' can't be written: {error}. Choose another place, or make room there."
    E084 = "The output '{path}' is a file. Name a folder that is empty or not there yet."
    E085 = (
        "The output '{path}' lies inside of '{source}', which is read, or around it. Name another "
        "folder; or '{source}' itself, with --force."
    )
    E086 = (
        "The output '{path}' can't be replaced: it is the folder of this shell, one around it, or "
        "a mounted volume. Name a folder inside of it."
    )
    E087 = (
        "The output '{path}' holds something else than a pipeline, which is never replaced, not "
        "even with --force. Name a folder that is empty or not there yet."
    )
    E088 = (
        "There is no earlyexit_transformer in this pipeline, only: {found}. Add one to `pipeline` "
        "in [nlp], with a block in [components]."
    )
    E089 = (
        "There is no GPU for --gpu-id {gpu_id}: PyTorch or CuPy without CUDA, or no device. Leave "
        "--gpu-id out to run on the CPU."
    )
    E090 = (
        "There is nothing to accelerate: the pipeline has no transformer of spacy-transformers, "
        "only {components}. A pipeline with an earlyexit_transformer is fast already."
    )
    E091 = "'{path}' holds something else than a JSON object with a \"text\" per line."


class Warnings:
    W001 = (
        "The extension '{attr}' already belongs to something else and is left alone; "
        "the exit layers are then only to be had from {where}."
    )
    W002 = (
        "This processor has no bfloat16 products, so `mixed_precision` in "
        "[components.{name}.model] makes training many times slower. Set it to false."
    )
    W003 = (
        "'{name}' has operating points, and now its weights change: their thresholds and the "
        "temperatures were found for those of before. Find them anew with calibrate."
    )
    W004 = (
        "This pipeline has several earlyexit_transformers ({names}). This is about '{name}'; load "
        "it with exclude=[…] for another."
    )
    W005 = (
        "The learning rate is 0 from step {total} on, but [training] goes on to max_steps = "
        "{steps}. Set training.optimizer.learn_rate.total_steps; in our configs max_steps follows."
    )
    W006 = (
        "`use(…)` of '{name}' does nothing by itself. Write `with transformer.use(…):` and predict "
        "inside of the block, or set `transformer.exit`."
    )
    W007 = (
        "exit_score is left out: '{name}' and all components behind it were sourced, so that it "
        "knows no pipeline to score them in. Start from the other pipeline with `init_from` in "
        "[initialize.components.{name}] instead."
    )
    W008 = (
        "'{source}' annotates labels for the task '{task}' of '{name}' that the pipeline does not "
        "know, and that count as wrong: {unknown}. It knows: {known}."
    )
    W009 = (
        "'{source}' is read as raw text, with the pipeline's own tokens, but '{name}' was trained "
        "on gold tokens. Its points were made for them, and give other scores and speed-ups here. "
        "Mend: --gold-preproc, or better: train on raw text."
    )
    W010 = (
        "Half of the words of '{source}' are in units of {here:.0f} words or more, in the training "
        "of '{name}' it was {trained:.0f}: its points may give other speed-ups and scores. Mend: "
        "calibrate on text like this{mend}."
    )
    W011 = (
        "'{source}' is read with gold tokens, but '{name}' was trained on raw text, which is what "
        "people have. Mend: leave out --gold-preproc."
    )
    W012 = (
        "Docs of '{source}' do not say where there are spaces, so that they are read with gold "
        "tokens, but '{name}' was trained on raw text. Mend: make them with `spaces`."
    )
