"""An app around the model of the labs: Foundry Local in its own process, without network.

    python app.py FOLDER < request.json

The request has "questions", the "limit" of an answer in tokens, and "search", options of
Foundry Local's SearchOptions. What is printed, in JSON: each answer and its seconds, what
Foundry Local refuses, and the peak of this process's memory.
"""

import json
import resource
import sys
import tempfile
import time

from foundry_local_sdk import Configuration, FoundryLocalManager
from foundry_local_sdk.catalog import CatalogType
from foundry_local_sdk.exception import FoundryLocalException
from foundry_local_sdk.items import MessageItem
from foundry_local_sdk.model_info import ModelInfoBuilder
from foundry_local_sdk.request import Request
from foundry_local_sdk.session import ChatSession
from foundry_local_sdk.session_types import RequestOptions, SearchOptions

NAME = "ft-for-travel:1"


def register(catalog, folder):
    card = ModelInfoBuilder().set_string_property("task", "chat-completion")
    return catalog.register_model(folder, NAME, card)


def refusal(of, *arguments):
    """What Foundry Local says when it does not do that."""
    try:
        of(*arguments)
    except FoundryLocalException as error:
        return str(error).rpartition(") ")[2]
    return "not refused"


def answer(session, question, limit, search):
    options = SearchOptions(max_output_tokens=limit, **search)
    with Request() as request:
        request.add_item(MessageItem.user(question))
        request.set_options(RequestOptions(search=options))
        started = time.perf_counter()
        with session.process_request(request) as response:
            text = "".join(item.get_simple_text() for item in response)
        return {"text": text.strip(), "seconds": time.perf_counter() - started}


def main():
    folder, asked = sys.argv[1], json.load(sys.stdin)
    places = tempfile.TemporaryDirectory()  # what is registered would stay there
    FoundryLocalManager.initialize(
        Configuration(
            "on-device-lab",
            app_data_dir=places.name,
            model_cache_dir=places.name,
            logs_dir=places.name,
            disable_nonessential_telemetry=True,
        )
    )
    catalog = FoundryLocalManager.instance.get_catalog(CatalogType.LOCAL)
    model = register(catalog, folder)
    started = time.perf_counter()
    model.load()
    found = {"load_seconds": time.perf_counter() - started, "answers": []}
    for question in asked["questions"]:
        with ChatSession(
            model
        ) as session:  # a new one: it would remember the last question
            found["answers"].append(
                answer(session, question, asked["limit"], asked["search"])
            )
    found["refused"] = {
        "a second registration": refusal(register, catalog, folder),
        "a folder that is not there": refusal(register, catalog, f"{folder}-gone"),
    }
    with ChatSession(model):
        found["refused"]["unloading what is in use"] = refusal(model.unload)
    model.unload()
    catalog.unregister_model(NAME)
    found["left"] = [one.id for one in catalog.list_models()]
    found["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    print(json.dumps(found))


if __name__ == "__main__":
    main()
