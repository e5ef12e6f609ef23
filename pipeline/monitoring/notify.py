"""Send notifications: to the log, and to the addresses in CRACKS_NOTIFY_URL (e-mail, Slack, webhook ...).

Addresses are Apprise URLs such as mailto://..., slack://... or jsons://HOST/PATH, separated by spaces. They contain
passwords, so they come from the environment and never from params.yaml.
"""

import logging
import os

log = logging.getLogger(__name__)

ADDRESSES = "CRACKS_NOTIFY_URL"


def notify(title: str, lines: list[str]) -> bool:
    """Log a message and send it to every address; return whether it was delivered to one, or no address is set.

    A failing address raises no error; if none was reached, the caller should send the message again.
    """
    body = "\n".join(lines)
    log.info("\n".join([title, *lines]))
    addresses = os.environ.get(ADDRESSES, "").split()
    if not addresses:
        return True
    from apprise import Apprise, NotifyFormat

    delivered = False
    for position, address in enumerate(addresses, start=1):
        sender = Apprise()
        if sender.add(address) and sender.notify(body=body, title=title, body_format=NotifyFormat.TEXT):
            delivered = True
        else:
            log.error(
                f"Address {position} of {ADDRESSES} could not be notified: Apprise does not know it, or nothing "
                "answers there. Correct it; the message is in the log above."
            )
    return delivered
