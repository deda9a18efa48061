"""Whether sharing the device pays, said as a result; a single job is never sold an aggregate."""

from dataclasses import replace

import pytest

from autotune.codec import to_json
from autotune.probe.recipe import load_recipe, with_jobs
from autotune.records import Point, ProbeResult
from autotune.search.sharing import sharing_gain
from autotune.search.space import space_of
from autotune.store import canonical_json


def measured(concurrency, sps, half=0.05, num_envs=32, status="ok"):
    point = Point(num_envs=num_envs, batch_size=256, concurrency=concurrency)
    low, high = (1 - half) * sps, (1 + half) * sps
    return ProbeResult(requested=point, status=status, grade="quick", sps=sps, sps_low=low, sps_high=high)


def test_a_gain_within_the_error_does_not_pay():
    found = sharing_gain([measured(1, 1000), measured(2, 1020), measured(4, 900), measured(1, 700, num_envs=8)])
    assert (found.point.concurrency, found.alone.num_envs, found.pays) == (2, 32, False)
    assert found.gain == pytest.approx(1.02)
    assert 0.94 < found.low < 0.97 and 1.07 < found.high < 1.11
    assert found.sentence == (
        f"sharing does not pay here: 2 processes reach 1.02x [{found.low:.2f}, {found.high:.2f}] of one"
    )


def test_a_clear_gain_pays_and_a_loss_does_not():
    gain = sharing_gain([measured(1, 1000), measured(4, 1900)])
    assert gain.pays and gain.sentence.startswith("sharing pays here: 4 processes reach 1.90x [")
    loss = sharing_gain([measured(1, 1000), measured(4, 600)])
    assert not loss.pays and loss.high < 1


def test_there_is_no_verdict_where_the_side_that_lost_was_tried_with_fewer_environments_only():
    alone, two = measured(1, 4182, num_envs=16), measured(2, 21973, num_envs=256)
    found = sharing_gain([alone, two], two.requested)
    assert found.sentence.startswith("whether sharing pays here is not settled: 2 processes reach 5.25x [")
    assert found.sentence.endswith("of one, but one was tried with 16 environments at most, and each of these has 256")
    less = sharing_gain([alone, measured(2, 7000, num_envs=32)])
    assert less.sentence.endswith("but one was tried with 16 environments at most, and each of these has 32")
    for tried in (measured(1, 9000, num_envs=256), measured(1, 0, num_envs=256, status="oom")):
        assert sharing_gain([alone, two, tried], two.requested).sentence.startswith("sharing pays here: ")
    few, many = measured(2, 2000, num_envs=8), measured(1, 9000, num_envs=64)
    found = sharing_gain([few, many], many.requested)
    assert found.sentence.startswith("whether sharing pays here is not settled: 2 processes reach 0.22x [")
    assert found.sentence.endswith("but they were tried with 16 environments in all at most, and that one has 64")
    full = measured(2, 2100, num_envs=32)
    assert sharing_gain([few, many, full], many.requested).sentence.startswith("sharing does not pay here: ")


def test_nothing_is_said_where_only_one_way_was_stable():
    assert sharing_gain([]) is None
    assert sharing_gain([measured(1, 1000), measured(1, 900, num_envs=8)]) is None
    assert sharing_gain([measured(1, 1000), measured(2, 1500, status="oom")]) is None
    assert sharing_gain([measured(1, 1000, status="oom"), measured(2, 1500)]) is None


def test_a_single_job_is_searched_with_one_process():
    recipe = load_recipe("atari")
    one = with_jobs(recipe, recipe.jobs[:1])
    assert {point.concurrency for point in space_of(one).points} == {1}
    assert one.baseline.concurrency == 1
    stubborn = with_jobs(replace(recipe, knobs={**recipe.knobs, "concurrency": (2, 4)}), recipe.jobs[:1])
    assert {point.concurrency for point in space_of(stubborn).points} == {1}


def test_the_recommended_point_is_compared_not_a_lucky_one():
    """Four processes look fastest in one noisy window; the two that are recommended gain clearly."""
    lucky, sure = measured(4, 1500, half=0.3), measured(2, 1400, half=0.03)
    history = [measured(1, 1000), lucky, sure]
    assert sharing_gain(history, sure.requested).sentence.startswith("sharing pays here: 2 processes reach 1.40x [")
    assert sharing_gain(history).point == sure.requested, "the best lower end"
    alone = measured(1, 900, num_envs=8)
    assert sharing_gain([*history, alone], alone.requested).alone == alone.requested


def test_no_verdict_stands_beside_a_recommendation_that_it_contradicts():
    alone, two = measured(1, 1000), measured(2, 1020)
    tied = sharing_gain([alone, two], two.requested, [alone.requested])
    assert tied.sentence.startswith("sharing does not pay here: ")
    untied = sharing_gain([alone, two], two.requested)
    assert untied.sentence.startswith("whether sharing pays here is not settled: 2 processes reach 1.02x [")


def test_an_open_end_of_the_interval_is_null_in_json():
    """Windows of two long iterations know half of a rate or less: the search ended in a traceback with its answer."""
    found = sharing_gain([measured(1, 1000, half=1.2), measured(4, 1900, half=1.2)])
    assert found.low == 0 and not found.pays and "[0.00, inf] of one" in found.sentence
    assert '"high": null' in canonical_json(to_json(found))
