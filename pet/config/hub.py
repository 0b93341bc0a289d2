"""Whether the model hub can be reached."""

import socket
from functools import cache
from urllib.parse import urlsplit


@cache
def hub_reachable() -> bool:
    """Whether the hub's name resolves. If not, its libraries would try again for a minute; the local cache is read at
    once instead."""
    from huggingface_hub import constants

    try:
        socket.getaddrinfo(urlsplit(constants.ENDPOINT).hostname, 443)
    except OSError:
        return False
    return not constants.HF_HUB_OFFLINE
