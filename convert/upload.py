"""Uploads a converted folder to the Hub; the folder stays whole whatever happens."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from huggingface_hub.errors import HTTPError

from ..errors import InputError

# Where nothing answers at all, the Hub's library raises an HTTPError that is no OSError.
_FAILURES = (HTTPError, OSError)
_REPO = re.compile(r"[\w.-]+/[\w.-]+")


class Hub(Protocol):
    """The methods of `huggingface_hub.HfApi` that an upload calls."""

    def whoami(self) -> dict[str, Any]:
        """The account that the user's token belongs to."""
        ...

    def create_repo(self, repo_id: str, *, exist_ok: bool) -> Any:
        """Make a repository, unless it is there."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> Any:
        """Upload all files of a folder that are not there yet."""
        ...


def check_upload(repo: str, hub: Hub) -> None:
    """Refuse an upload that cannot work, before the work of a conversion.

    Raises:
        InputError: the name is no id of a repository, there is no valid token, or no network.
    """
    if not _REPO.fullmatch(repo):
        raise InputError("--upload-repo", repr(repo), "OWNER/NAME")
    try:
        hub.whoami()
    except _FAILURES as error:
        hint = "Check the network and log in (`hf auth login`), or convert without --upload-repo."
        raise InputError("--upload-repo", _reason(error), "an account of the Hub", hint) from error


def upload(folder: Path, repo: str, hub: Hub) -> None:
    """Make the repository where it is not there, and upload the folder in one commit.

    Files that are there already are not sent again, so a second call resumes the first.

    Raises:
        InputError: the Hub does not take it; the folder stays as it is.
    """
    try:
        hub.create_repo(repo, exist_ok=True)
        hub.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Converted with dspark_mlx"
        )
    except _FAILURES as error:
        hint = f"{folder} is complete: `hf upload {repo} {folder}` uploads it."
        raise InputError(repo, f"no upload ({_reason(error)})", "one", hint) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no reason given'}"
