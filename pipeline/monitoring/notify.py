"""Telling a person: always in the log, and to the addresses in CRACKS_NOTIFY_URL (e-mail, Slack, webhook ...).

An address is one of Apprise's, such as mailto://..., slack://... or jsons://HOST/PATH; several stand apart by blanks.
They hold passwords, so they come from the environment and never from params.yaml.
"""

import logging
import os

log = logging.getLogger(__name__)

ADDRESSES = "CRACKS_NOTIFY_URL"


def notify(title: str, lines: list[str]) -> bool:
    """Tell what happened and why.

    Returns:
        Whether the message reached anyone: what reached nobody is worth telling again. An address that fails is no
        reason to fail what it tells of, or to tell the others again. True where no address is set.
    """
    body = "\n".join(lines)
    log.info("\n".join([title, *lines]))
    addresses = os.environ.get(ADDRESSES, "").split()
    if not addresses:
        return True
    from apprise import Apprise, NotifyFormat

    told = False
    for position, address in enumerate(addresses, start=1):
        sender = Apprise()
        if sender.add(address) and sender.notify(body=body, title=title, body_format=NotifyFormat.TEXT):
            told = True
        else:
            log.error(
                "Address %d of %s could not be told: it is none that Apprise knows, or nothing answered there. Correct "
                "it; the message stands above.",
                position,
                ADDRESSES,
            )
    return told
