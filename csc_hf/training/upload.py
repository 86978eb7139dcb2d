# Copyright 2026 The csc_hf authors. Licensed under the Apache License, Version 2.0.
"""Upload a folder to a Hub repository: the program that `BackgroundPush` in hub.py runs beside the training.

`huggingface_hub` retries most requests by itself, but not all of them (not the creation of a commit), and it may wait
for an answer forever. Here, a whole upload is tried several times, and every wait for an answer ends. What one attempt
has sent is not sent again by the next, and a commit whose confirmation was lost is not made twice: the client first
compares what is there.

It imports nothing but `huggingface_hub`, so it starts within a second and needs little memory.

    python upload.py REPO_ID FOLDER MESSAGE ANSWER_TIMEOUT FIRST_WAIT

FOLDER is deleted at the end. Failures that are retried go to stderr. Exit status 1 means that the upload has failed;
stdout says why.
"""

import random
import shutil
import sys
import time

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError

# With the default first wait of 5 s and waits that double, the last attempt comes about 10 minutes after the first:
# the Hub counts requests over windows of 5 minutes.
ATTEMPTS = 8


def upload(repo_id: str, folder: str, message: str, answer_timeout: float, first_wait: float) -> None:
    """Commit the files of a folder to a repository; see `BackgroundPush` for the arguments.

    Raises:
        SystemExit: the upload has failed; the reason is printed.
    """
    for attempt in range(1, ATTEMPTS + 1):
        get_session().timeout = answer_timeout  # each time: the client opens a new session after some failures
        try:
            HfApi().upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
            return
        except Exception as error:
            causes = _causes(error)
            reason = " ".join("; ".join(dict.fromkeys(map(str, causes))).split())
            if attempt == ATTEMPTS or not _may_pass(causes[-1]):
                print(reason[:10_000])  # what a pipe holds without a reader
                raise SystemExit(1) from None
        wait = max(first_wait * 2 ** (attempt - 1) * random.uniform(0.5, 1.5), _retry_after(causes[-1]))
        print(f"Push to {repo_id}: {reason} Attempt {attempt + 1} of {ATTEMPTS} in {wait:.1f} s.", file=sys.stderr)
        time.sleep(wait)


def _causes(error: BaseException) -> list[BaseException]:
    """The error, its cause, the cause of that and so on, up to the Hub's answer if there was one."""
    causes = [error]
    while not isinstance(causes[-1], HfHubHTTPError) and causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)
    return causes


def _may_pass(error: BaseException) -> bool:
    """Whether another attempt can help: not if the Hub refuses the request itself (400, 401, 403, 404, 413, ...).

    Xet, which the client sends weights with if `hf_xet` is installed, hides the status: such failures are always
    retried.
    """
    if not isinstance(error, HfHubHTTPError):
        return True
    status = error.response.status_code
    return status >= 500 or status in (408, 409, 429)  # too slow, in conflict with another commit, too many requests


def _retry_after(error: BaseException) -> float:
    """How many seconds the Hub asks to wait, or 0."""
    value = error.response.headers.get("Retry-After", "") if isinstance(error, HfHubHTTPError) else ""
    return float(value) if value.isdigit() else 0.0


if __name__ == "__main__":
    try:
        upload(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]), float(sys.argv[5]))
    finally:
        shutil.rmtree(sys.argv[2])
