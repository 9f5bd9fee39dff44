"""Get a data set from Kaggle, where the user has the extra ``kaggle`` and, if it is asked for, an account."""

from pathlib import Path

from fish_lightning.errors import UserError, first_line


def download(handle: str, root: Path) -> None:
    """Download a data set into kagglehub's cache and make ``root`` a link to it, so that it is not stored twice.

    Args:
        handle: ``owner/name`` on Kaggle.
        root: where it is wanted; nothing is there yet.

    Raises:
        UserError: kagglehub is not installed or could not download it.
    """
    by_hand = (
        f"or download the zip file by hand (kaggle.com/datasets/{handle}) and run\n"
        "python -m fish_lightning.prepare data=fish data.archive=FILE.zip"
    )
    try:
        import kagglehub
    except ImportError:
        raise UserError(
            f"data.root: {root} does not exist (seen from {Path.cwd()}); if the data are elsewhere: data.root=DIR\n"
            f"to have them downloaded: pip install kagglehub\n{by_hand}"
        ) from None
    print(f"data.root: {root} does not exist: downloading {handle} from Kaggle", flush=True)
    try:
        folder = Path(kagglehub.dataset_download(handle))
    except Exception as error:  # no network, no account, no room: whatever it and its HTTP library raise
        raise UserError(
            f"{handle} could not be downloaded: {first_line(error)}\n"
            "if Kaggle asks who you are: make a token at kaggle.com/settings, save it as ~/.kaggle/kaggle.json,\n"
            f"{by_hand}"
        ) from None
    try:
        root.parent.mkdir(parents=True, exist_ok=True)
        root.unlink(missing_ok=True)  # a link to a download that was deleted
        root.symlink_to(folder.resolve(), target_is_directory=True)
    except OSError as error:
        raise UserError(
            f"{root} cannot be made a link to the download: {error.strerror or error}\n"
            f"use it where it is: data.root={folder}"
        ) from None
