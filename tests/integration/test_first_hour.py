"""What a newcomer does first: the login link of ``up``, "Try it", and the job as a form."""

import re
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import expect

from tasks.access.login_links import LoginLinks
from tasks.state.connection import connect
from tests.integration.browsers import chromium, is_wider_than_its_screen, nameless, visit
from tests.integration.fleets import Fleet
from tests.waiting import wait_until
from worker.cli.reports.job_report import published_of
from worker.miniature.images import CONCEPT_SHAPE
from worker.miniature.reading import read

expect.set_options(timeout=60_000)


@pytest.mark.filterwarnings("ignore")  # of diffusers and transformers, while they load
def test_a_newcomer_trains_by_one_click(fleet: Fleet) -> None:
    key = (fleet.home / "console-key").read_text("utf-8").strip()
    with connect(fleet.broker_url) as client:
        token = LoginLinks(client).create(key)
    with chromium() as browser, visit(browser, fleet.console, width=390, height=800) as page:
        page.goto(f"/login?once={token}")
        assert not nameless(page)
        expect(page.get_by_role("button", name="Log in")).to_be_focused()
        page.get_by_role("button", name="Log in").dblclick()
        page.get_by_role("heading", level=1, name="Jobs").wait_for()
        page.goto("/new")
        offer = page.get_by_role("region", name="Try it")
        expect(offer.get_by_role("button", name="Try it")).to_be_visible()
        expect(offer).to_contain_text("from 28 demo images")
        assert not is_wider_than_its_screen(page)
        offer.get_by_role("button", name="Try it").click()
        page.wait_for_url("**/jobs/*")
        job_id = page.url.rpartition("/")[2]

        # Its images are the form's, as if they had been chosen there.
        page.goto(f"/new?again={job_id}")
        expect(page.get_by_role("img", name=re.compile("a navy zorp on the left"))).to_have_count(1)
        expect(page.get_by_text("28 valid images")).to_be_visible()
    wait_until(lambda: fleet.record(job_id).status.ended, timeout_s=300, description="the demo")
    assert fleet.record(job_id).status == "succeeded", fleet.log()

    # Its samples show the concept at the last step, and nothing like it before the first.
    folder = Path(published_of(fleet.record(job_id))).parent / "validation"
    shapes = [
        read(Image.open(folder / f"validation-{step:06d}-1-1.png")).caption.shape
        for step in (0, 250)
    ]
    assert shapes[0] != shapes[1] == CONCEPT_SHAPE
