"""The group `python -m spacy earlyexit …`.

The entry point group `spacy_cli` has spaCy import this module before it parses a command line, and
importing it adds the group to spaCy's app. So every run of `python -m spacy` pays for what is
imported here: the commands' modules import the rest of the package inside their functions.
"""

import typer
from spacy.cli._util import app as spacy_app

from .accelerate import accelerate_cli
from .benchmark import benchmark_cli
from .calibrate import calibrate_cli
from .convert import convert_cli
from .debug_data import debug_data_cli
from .evaluate import evaluate_cli
from .info import info_cli
from .options import warnings_as_messages

app = typer.Typer(
    name="earlyexit",
    help="Commands for pipelines with an earlyexit_transformer.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.callback()
def _run(context: typer.Context) -> None:
    # for the time of the command, also where another program calls it
    context.with_resource(warnings_as_messages())


app.command("info")(info_cli)
app.command("accelerate")(accelerate_cli)
app.command("convert")(convert_cli)
app.command("calibrate")(calibrate_cli)
app.command("evaluate")(evaluate_cli)
app.command("benchmark")(benchmark_cli)
app.command(
    "debug-data", context_settings={"allow_extra_args": True, "ignore_unknown_options": True}
)(debug_data_cli)

spacy_app.add_typer(app)
