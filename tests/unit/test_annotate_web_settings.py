"""Where the app is reached, and how often one address may knock."""

from __future__ import annotations

import pytest

from mmvp_ray.annotate.config import AnnotateServeConfig
from mmvp_ray.annotate.web.login_limit import LoginLimit
from mmvp_ray.annotate.web.settings import WebSettings
from mmvp_ray.errors import ConfigError


def test_a_public_url_is_origin_prefix_and_host() -> None:
    found = WebSettings(public_url="https://Lab.org:8443/annotate/")
    assert (found.origin, found.prefix, found.is_secure) == ("https://lab.org:8443", "/annotate", True)
    assert "lab.org" in found.hosts and "127.0.0.1" in found.hosts
    assert WebSettings().origin is None and WebSettings().prefix == "" and not WebSettings().is_secure


@pytest.mark.parametrize(
    "url", ["lab.org", "ftp://lab.org", "https://", "https://a:b@lab.org", "https://lab.org/?x", "https://lab.org/#x"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected a URL such as"):
        WebSettings(public_url=url)


def test_nothing_travels_in_the_clear_unless_told() -> None:
    AnnotateServeConfig(workspace="w").check()
    AnnotateServeConfig(workspace="w", host="0.0.0.0", public_url="https://lab.org").check()
    AnnotateServeConfig(workspace="w", host="0.0.0.0", allow_plain_http=True).check()
    for public_url in (None, "http://lab.org"):
        with pytest.raises(ConfigError, match="travel in the clear"):
            AnnotateServeConfig(workspace="w", host="0.0.0.0", public_url=public_url).check()


def test_a_minute_slides_and_addresses_do_not_share_it() -> None:
    limit = LoginLimit(3)
    assert [limit.allows("a", now=float(second)) for second in (0, 10, 20, 30)] == [True, True, True, False]
    assert limit.allows("b", now=30.0)
    # The attempt of second 0 has left the minute; those that were refused never entered it.
    assert [limit.allows("a", now=second) for second in (60.5, 60.6, 70.5)] == [True, False, True]
