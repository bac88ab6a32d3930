"""What schemathesis can't know of the API by its description; scripts/check_api.sh hands it over.

Modules that can be run, how bytes are read, and which key it must not take from itself.
"""

import os
import uuid
from pathlib import Path

import schemathesis
from hypothesis import strategies

GUESTS = Path(os.environ["GUESTS"])
# The ids of its own key and user: without them, all that follows would be answered with 401.
OWN = set(os.environ["OWN_IDS"].split())


def modules(*endings):
    """Modules that work, those that are cut off, and anything."""
    whole = [path.read_bytes() for ending in endings for path in sorted(GUESTS.glob(ending))]
    good = strategies.sampled_from(whole)
    cut = strategies.builds(lambda module, at: module[: at % len(module)] or b"\0", good, strategies.integers(1))
    return strategies.one_of(good, good, cut, strategies.binary(min_size=1, max_size=64))


schemathesis.openapi.media_type("application/wasm", modules("*.wasm", "*.wat"))
schemathesis.openapi.media_type("application/wat", modules("*.wat"), aliases=["text/wat"])


@schemathesis.deserializer("application/octet-stream")
def read_bytes(context, response):
    return response.content.decode("latin-1")


# With it, names of modules are good: schemathesis takes a required field beside one that has a strategy to be good when it is empty.
schemathesis.openapi.media_type("text/plain", strategies.text("abcÄ β", min_size=1).map(lambda name: f"a{name}".encode()))


@schemathesis.hook
def before_call(context, case, kwargs):
    if case.method != "GET" and (case.path_parameters or {}).get("id") in OWN:
        case.path_parameters["id"] = str(uuid.uuid4())
    # Fields of forms that are not asked for may have any name, but not one that no form can write.
    if case.media_type == "multipart/form-data" and isinstance(case.body, dict):
        for name in [name for name in case.body if not name.isascii() or not name.isprintable()]:
            del case.body[name]
