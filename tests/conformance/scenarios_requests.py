"""Scenarios of requests that run nothing: invalid prompts, user data, and what browsers must not do."""

from conformance_graphs import changed, sampling, with_missing_file, with_missing_model
from conformance_stage import Stage

_FOREIGN = {"Origin": "http://evil.example"}


async def rejected(stage: Stage) -> None:
    """Every kind of invalid prompt; of two of them something runs all the same."""
    unknown = sampling()
    unknown["2"]["class_type"] = "NoSuchNode"
    invalid = {
        "unknown class": {"prompt": unknown},
        "missing input": {"prompt": changed("2", seed=None)},
        "value too large": {"prompt": changed("2", steps=99999)},
        "bad link": {"prompt": changed("2", image=["1", 0, 0])},
        "wrong type": {"prompt": changed("2", seed="abc")},
        "one of two outputs invalid": {"prompt": with_missing_file()},
        "value not in list": {"prompt": with_missing_model()},
        "no outputs": {"prompt": {"1": sampling()["1"]}},
        "empty graph": {"prompt": {}},
        "no prompt": {"client_id": "x"},
    }
    for what, body in invalid.items():
        await stage.ask("POST", "/prompt", f"POST /prompt {what}", json=body)
    broken = {"data": b"{nonsense", "headers": {"Content-Type": "application/json"}}
    await stage.ask("POST", "/prompt", "POST /prompt not json", **broken)
    await stage.ask("POST", "/prompt", "POST /prompt json list", json=[1, 2])
    named = {"prompt": sampling(11), "prompt_id": "abc"}
    await stage.ask("POST", "/prompt", "POST /prompt prompt_id not a uuid", json=named)


async def user_data(stage: Stage) -> None:
    """Settings and files of the user are written, read, moved and deleted."""
    for path in ("users", "settings", "userdata?dir=", "userdata?dir=workflows&recurse=true", "userdata/none.json"):
        await stage.ask("GET", f"/{path}")
    await stage.ask("POST", "/settings/conf.key", json=5)
    await stage.ask("GET", "/settings/conf.key")
    await stage.ask("POST", "/userdata/workflows%2Fa.json", json={"a": 1})
    await stage.ask("GET", "/userdata/workflows%2Fa.json")
    await stage.ask("GET", "/userdata?dir=workflows&recurse=true")
    await stage.ask("POST", "/userdata/workflows%2Fa.json/move/workflows%2Fb.json")
    await stage.ask("DELETE", "/userdata/workflows%2Fb.json")
    await stage.ask("GET", "/userdata/..%2F..%2Fx.json")


async def browser_origin(stage: Stage) -> None:
    """Pages of other sites are refused, and methods and paths that do not exist are, too."""
    await stage.ask("GET", "/prompt", "GET /prompt foreign origin", headers=_FOREIGN)
    await stage.ask("POST", "/prompt", "POST /prompt foreign origin", headers=_FOREIGN, json={})
    await stage.ask("OPTIONS", "/prompt")
    await stage.ask("POST", "/free", json={"unload_models": True, "free_memory": False})
    await stage.ask("GET", "/no/such/path")
    await stage.ask("PUT", "/prompt", json={})
