"""What the proxy says that it can."""

from service_support import make_fleet

from comfyproxy.core.health import Health
from comfyproxy.service.features import ServerFeatures
from comfyproxy.service.fleet import Fleet


def fleet_with(**features: object) -> Fleet:
    fleet = make_fleet("a", "b")
    fleet.home().features = features
    return fleet


def test_it_can_what_the_home_backend_can() -> None:
    flags = {"supports_preview_metadata": True, "max_upload_size": 5, "extension": {"manager": {"v4": True}}}
    assert ServerFeatures(fleet_with(**flags))() == flags


def test_text_frames_travel_in_the_form_without_a_flag() -> None:
    fleet = fleet_with(supports_progress_text_metadata=True, max_upload_size=5)
    assert ServerFeatures(fleet)() == {"max_upload_size": 5}
    assert "supports_progress_text_metadata" in fleet.home().features


def test_without_a_word_from_a_backend_it_can_what_it_does_itself() -> None:
    assert ServerFeatures(fleet_with())() == {"supports_preview_metadata": True}
    assert ServerFeatures(fleet_with(supports_progress_text_metadata=True))() == {"supports_preview_metadata": True}


def test_it_can_as_much_while_no_backend_is_there() -> None:
    fleet = fleet_with(max_upload_size=5)
    for backend in fleet:
        backend.health = Health(healthy=False)
    assert ServerFeatures(fleet)() == {"supports_preview_metadata": True}


def test_another_home_has_other_features() -> None:
    fleet = fleet_with(max_upload_size=5)
    features = ServerFeatures(fleet)
    a, b = fleet
    a.health, b.features = Health(healthy=False), {"max_upload_size": 7}
    assert features() == {"max_upload_size": 7}
