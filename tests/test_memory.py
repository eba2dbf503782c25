"""The planner as a table: what fits where, at which level, and that more memory is never worse."""

import time
from collections.abc import Iterator

import pytest

from pipelines.memory.activations import SIDES, denoiser_bytes, interpolated
from pipelines.memory.planner import (
    GIB,
    MIB,
    Level,
    Load,
    PartSize,
    Plan,
    Room,
    Wish,
    at_most,
    degrade,
    nominal,
    plan,
    plan_ahead,
)

CAPS = (2, 3, 4, 6, 8, 12, 16, 24)
SIZES = ((512, 512), (768, 768), (1024, 1024), (1344, 768), (2048, 2048))
BATCHES = (1, 2, 8)
MB = 10**6

PARTS: dict[str, dict[str, int]] = {
    "sd1": {"text_encoder": 246 * MB, "unet": 1719 * MB, "vae": 167 * MB},
    "sd2": {"text_encoder": 681 * MB, "unet": 1732 * MB, "vae": 167 * MB},
    "sdxl": {"text_encoder": 246 * MB, "text_encoder_2": 1390 * MB, "unet": 5135 * MB, "vae": 167 * MB},
    "sd3": {"text_encoder": 246 * MB, "text_encoder_3": 9525 * MB, "transformer": 4057 * MB, "vae": 168 * MB},
    "flux": {"text_encoder": 246 * MB, "text_encoder_2": 9525 * MB, "transformer": 23803 * MB, "vae": 168 * MB},
    "flux2": {"text_encoder": 8045 * MB, "transformer": 7751 * MB, "vae": 168 * MB},
    "z_image": {"text_encoder": 8045 * MB, "transformer": 12310 * MB, "vae": 168 * MB},
    "qwen_image": {"text_encoder": 16584 * MB, "transformer": 40861 * MB, "vae": 254 * MB},
}


def load(family: str, width: int = 1024, height: int = 1024, batch: int = 1, guided: bool = True) -> Load:
    parts = {name: nominal(name, size) for name, size in PARTS[family].items()}
    return Load(family=family, parts=parts, width=width, height=height, batch=batch, guided=guided)


def room(gigabytes: float) -> Room:
    return Room(free_bytes=int(gigabytes * GIB))


def every_load() -> Iterator[Load]:
    for family in PARTS:
        for width, height in SIZES:
            for batch in BATCHES:
                yield load(family, width, height, batch)


@pytest.mark.parametrize("cap", CAPS)
def test_what_is_said_to_fit_fits(cap: int) -> None:
    for job in every_load():
        found = plan(job, room(cap))
        assert found.fits == (found.need_bytes <= cap * GIB), job
        assert found.fits == (found.reason == "")
        if found.fits:
            assert need_by_hand(job, found) <= cap * GIB


def need_by_hand(job: Load, found: Plan) -> int:
    """Weights and activations of the denoising alone, added up from the plan's own words."""
    size = job.parts[job.denoiser]
    rows = job.batch * (1 if found.split_cfg or not job.guided else 2)
    acts = rows * denoiser_bytes(job.family, size.size_bytes, 2, job.pixels)
    weights = {
        Level.FULL: sum(s.size_bytes for s in job.parts.values()),
        Level.OFFLOAD: size.stored(found.storage),
        Level.STREAM: found.resident_bytes + 2 * size.leaf_bytes,
    }[found.level]
    return acts + weights


def test_more_memory_is_never_a_lower_level() -> None:
    for job in every_load():
        levels = [plan(job, room(cap)).level for cap in (*CAPS, 32, 48, 80)]
        assert levels == sorted(levels), (job.family, job.width, job.batch, levels)


@pytest.mark.parametrize(
    ("family", "side", "cap", "levels", "storage"),
    [
        ("sd1", 512, 2, {Level.OFFLOAD, Level.STREAM}, ""),
        ("sd1", 512, 4, {Level.FULL, Level.OFFLOAD}, ""),
        ("sd1", 512, 8, {Level.FULL}, ""),
        ("sdxl", 1024, 4, {Level.OFFLOAD, Level.STREAM}, ""),
        ("sdxl", 1024, 6, {Level.OFFLOAD, Level.STREAM}, ""),
        ("sdxl", 1024, 7, {Level.OFFLOAD}, ""),
        ("sdxl", 1024, 8, {Level.FULL}, ""),
        ("sdxl", 1024, 12, {Level.FULL}, ""),
        ("sd3", 1024, 4, {Level.STREAM}, ""),
        ("sd3", 1024, 8, {Level.OFFLOAD}, ""),
        ("flux", 1024, 8, {Level.STREAM}, "fp8"),
        ("flux", 1024, 16, {Level.OFFLOAD}, "fp8"),
        ("flux", 1024, 24, {Level.OFFLOAD}, ""),
        ("flux", 1024, 48, {Level.FULL}, ""),
        ("flux2", 1024, 12, {Level.OFFLOAD}, ""),
        ("z_image", 1024, 8, {Level.OFFLOAD, Level.STREAM}, "fp8"),
        ("qwen_image", 1024, 24, {Level.OFFLOAD, Level.STREAM}, "fp8"),
    ],
)
def test_what_people_have_runs_what_they_want(
    family: str, side: int, cap: int, levels: set[Level], storage: str
) -> None:
    found = plan(load(family, side, side), room(cap))
    assert found.fits, found.reason
    assert found.level in levels
    assert found.storage == storage


def test_networks_beside_the_denoiser_are_counted_where_they_lie() -> None:
    """SDXL with two ControlNets: on 8 GB it does not stay there as a whole any more; on a small card they stream."""
    alone = load("sdxl")
    followed = alone.model_copy(update={"beside": (2500 * MB, 2500 * MB)})
    for cap in CAPS:
        before, found = plan(alone, room(cap)), plan(followed, room(cap))
        assert found.level <= before.level
        assert found.fits == before.fits
    assert plan(alone, room(8)).level == Level.FULL > plan(followed, room(8)).level
    whole = plan(followed, room(24))
    assert whole.need_bytes - plan(alone, room(24)).need_bytes == pytest.approx(5000 * MB * 1.02, abs=9)


def test_a_plan_takes_no_time() -> None:
    """The page asks for one at every move of a slider; the bar is 20 ms."""
    jobs = list(every_load())
    start = time.perf_counter()
    for job in jobs:
        plan(job, room(4))
    assert (time.perf_counter() - start) / len(jobs) < 0.02


def test_the_vae_works_in_tiles_only_where_it_must() -> None:
    big = load("sdxl", 2048, 2048)
    assert plan(big, room(24)).tile == 0
    assert plan(big, room(6)).tile == 64
    assert not plan(load("sd1", 512, 512), room(2)).tiled_vae


def test_text_encoders_that_are_too_large_stream_or_compute_on_the_cpu() -> None:
    found = plan(load("flux"), room(8))
    assert found.streamed == ("transformer", "text_encoder_2")
    assert found.on_cpu == ()
    tight = load("qwen_image", 256, 256)
    words = tight.parts["text_encoder"].model_copy(update={"leaf_bytes": 1090 * MB})  # Qwen2.5-VL's table of words
    tight = tight.model_copy(update={"parts": {**tight.parts, "text_encoder": words}})
    assert plan(tight, room(2)).on_cpu == ("text_encoder",)


def test_the_passes_of_a_step_are_split_before_weights_are_streamed() -> None:
    for cap in range(20, 80):
        found = plan(load("sdxl", 1024, 1024, batch=4), room(cap / 10))
        if found.split_cfg:
            assert found.level == Level.OFFLOAD
            return
    pytest.fail("there is no such size")


def test_without_guidance_there_is_nothing_to_split() -> None:
    assert not any(plan(load("sdxl", batch=8, guided=False), room(cap)).split_cfg for cap in CAPS)


@pytest.mark.parametrize("placement", ["full", "offload", "stream"])
def test_a_wish_for_a_level_is_obeyed(placement: str) -> None:
    wish = Wish.model_validate({"placement": placement})
    found = plan(load("sd1", 512, 512), room(24), wish)
    assert found.level == Level[placement.upper()]
    assert found.fits
    if placement == "stream":
        assert found.resident_bytes == PARTS["sd1"]["unet"]


def test_a_wish_that_does_not_fit_says_what_helps() -> None:
    found = plan(load("flux"), room(8), Wish(placement="full"))
    assert not found.fits
    assert found.reason.endswith(
        "GB are needed and 8.0 GB are free: make the picture smaller, or set placement to auto (it is full), "
        "or close other programs that use the graphics card."
    )
    found = plan(load("sdxl", 4096, 4096, batch=8), room(2))
    assert "make fewer at once (batch size)" in found.reason


@pytest.mark.parametrize("storage", ["full", "fp8", "nf4"])
def test_a_wish_for_a_format_is_obeyed(storage: str) -> None:
    wish = Wish.model_validate({"storage": storage})
    for cap in CAPS:
        assert plan(load("flux"), room(cap), wish).storage == storage.replace("full", "")
    assert plan(load("flux"), room(12), Wish(storage="nf4")).level == Level.OFFLOAD


def test_weights_that_are_packed_already_are_not_packed_again() -> None:
    packed = nominal("transformer", 6800 * MB, packed=True)
    job = load("flux")
    job = job.model_copy(update={"parts": {**job.parts, "transformer": packed}})
    assert all(plan(job, room(cap)).storage == "" for cap in CAPS)
    assert plan(job, room(12)).level == Level.OFFLOAD


def test_full_precision_counts_twice() -> None:
    half, whole = nominal("unet", 1719 * MB), nominal("unet", 3438 * MB, number_bytes=4)
    sizes = [denoiser_bytes("sd1", part.size_bytes, part.number_bytes, 512 * 512) for part in (half, whole)]
    assert sizes[1] == 2 * sizes[0]


def test_on_the_cpu_weights_are_where_they_are() -> None:
    host = Room(free_bytes=8 * GIB, host=True)
    found = plan(load("sd1", 512, 512), host)
    assert (found.level, found.storage, found.streamed, found.fits) == (Level.FULL, "", (), True)
    assert found.need_bytes < 2 * GIB
    assert plan(load("sdxl", 2048, 2048), host).tile == 64
    short = plan(load("sdxl", 2048, 2048, batch=8), Room(free_bytes=GIB, host=True))
    assert short.split_cfg
    assert not short.fits
    assert "graphics card" not in short.reason


@pytest.mark.parametrize("family", ["sd1", "sdxl", "flux"])
@pytest.mark.parametrize("cap", [4, 8, 24, 80])
def test_after_memory_ran_out_less_is_asked_for_until_there_is_nothing_left(family: str, cap: int) -> None:
    found: Plan | None = plan(load(family), room(cap))
    seen = []
    while found is not None:
        seen.append(found)
        found = degrade(found)
        assert found not in seen
        assert len(seen) < 20
    assert [p.level for p in seen] == sorted((p.level for p in seen), reverse=True)
    assert (seen[-1].level, seen[-1].resident_bytes, seen[-1].tile) == (Level.STREAM, 0, 32)
    assert len(seen) == 1 or seen[0].level != seen[1].level or seen[0].level == Level.STREAM


def test_on_the_cpu_less_is_tiles_and_one_pass_after_another() -> None:
    found: Plan | None = Plan(host=True)
    seen = []
    while found is not None:
        seen.append((found.tile, found.split_cfg))
        found = degrade(found)
    assert seen == [(0, False), (64, True), (32, True)]


def test_what_was_learned_limits_what_is_planned() -> None:
    best = Plan(level=Level.FULL, resident_bytes=5 * GIB)
    lesson = Plan(level=Level.STREAM, tile=64, split_cfg=True, streamed=("unet",), resident_bytes=GIB)
    assert at_most(best, lesson) == lesson.model_copy(update={"need_bytes": best.need_bytes})
    worse = Plan(level=Level.STREAM, tile=32, resident_bytes=100 * MIB)
    both = at_most(worse, lesson)
    assert (both.level, both.tile, both.split_cfg, both.resident_bytes) == (Level.STREAM, 32, True, 100 * MIB)
    assert at_most(Plan(host=True), lesson) == Plan(host=True)


def test_between_measured_points_runs_a_straight_line() -> None:
    mib = (16, 65, 146, 260, 585, 1041)
    for side, known in zip(SIDES, mib, strict=True):
        assert interpolated(mib, side * side) == pytest.approx(known)
    assert 65 < interpolated(mib, 640 * 640) < 146
    assert interpolated(mib, 4096 * 4096) > 4000
    assert interpolated(mib, 64 * 64) > 0


def test_a_plan_reads_like_a_sentence() -> None:
    text = str(Plan(level=Level.STREAM, storage="fp8", tile=64, split_cfg=True, on_cpu=("text_encoder",)))
    assert text == "STREAM, fp8 weights, VAE in tiles of 512 pixels, a pass for each prompt, text encoder on the CPU"
    assert str(Plan(host=True)) == "CPU"


def test_a_family_that_nobody_measured_is_planned_all_the_same() -> None:
    parts = {"transformer": nominal("transformer", 4 * GIB), "vae": nominal("vae", 160 * MB)}
    assert plan(Load(family="new", parts=parts, width=1024, height=1024), room(8)).fits
    assert plan(Load(family="new", parts={}, width=64, height=64), room(8)).fits
    assert PartSize(size_bytes=4, leaf_bytes=4, fp8_bytes=2, nf4_bytes=1).stored("nf4") == 1


def test_before_a_model_is_in_ram_its_weights_count() -> None:
    """A CPU computes where the weights lie: they come out of the same memory."""
    part = nominal("transformer", 24 * 10**9)
    load = Load(family="flux", parts={"transformer": part}, width=512, height=512)
    room = Room(free_bytes=16 * GIB, host=True)
    assert plan(load, room).fits, "where they are there already"
    ahead = plan_ahead(load, room)
    assert not ahead.fits
    assert ahead.need_bytes > part.size_bytes
    assert "16.0 GB are free" in ahead.reason
    on_card = Room(free_bytes=16 * GIB)
    assert plan_ahead(load, on_card) == plan(load, on_card)


def test_a_cpu_that_is_short_of_ram_leaves_the_denoiser_in_its_file() -> None:
    """SDXL in 32 bits takes 14 GB, and 8 with the U-Net's weights left where they are."""
    parts = {name: nominal(name, 2 * size, number_bytes=4) for name, size in PARTS["sdxl"].items()}
    load = Load(family="sdxl", parts=parts, width=512, height=512)
    found = {gb: plan_ahead(load, Room(free_bytes=gb * GIB, host=True)) for gb in (2, 8, 24)}
    assert [(each.fits, each.in_file) for each in found.values()] == [(False, False), (True, True), (True, False)]
    assert found[8].need_bytes < 6 * GIB
    assert "weights from the file" in str(found[8])
    half = {name: nominal(name, size) for name, size in PARTS["sdxl"].items()}
    short = plan_ahead(load.model_copy(update={"parts": half}), Room(free_bytes=4 * GIB, host=True))
    assert not short.fits, "in 16 bits the file may be in the same format: nothing would be saved"
