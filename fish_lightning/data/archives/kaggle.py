"""Download a data set from Kaggle with the optional dependency kagglehub."""

from pathlib import Path

from fish_lightning.errors import UserError, first_line
from fish_lightning.files import shown


def download(handle: str, root: Path) -> None:
    """Download a data set into kagglehub's cache and link ``root`` to it, so that it is not stored twice.

    Args:
        handle: ``owner/name`` on Kaggle.
        root: link to create; nothing exists there yet.

    Raises:
        UserError: kagglehub is not installed, the download failed, or the link cannot be created.
    """
    manually = (
        f"or download the zip file in a browser (kaggle.com/datasets/{handle}) and run\n"
        "python -m fish_lightning.prepare data=fish data.archive=FILE.zip"
    )
    try:
        import kagglehub
    except ImportError:
        raise UserError(
            f"data.root: {root} does not exist (working directory: {Path.cwd()})\n"
            f"if the data is elsewhere: data.root=DIR; to download it: pip install kagglehub\n{manually}"
        ) from None
    print(f"data.root: {shown(root)} does not exist: downloading {handle} from Kaggle", flush=True)
    try:
        folder = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # no network, no account, no space: whatever kagglehub and its HTTP library raise
        raise UserError(
            f"{handle} could not be downloaded: {first_line(error)}\n"
            "if Kaggle requires authentication: create a token at kaggle.com/settings, save it as\n"
            f"~/.kaggle/kaggle.json, {manually}"
        ) from None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.unlink(missing_ok=True)  # a dangling link to a deleted download
        root.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"cannot create {root} as a link to the download: {error.strerror or error}\n"
            f"use the download directly: data.root={folder}"
        ) from None
