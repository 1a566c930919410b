import os
from fractions import Fraction

import av
import numpy as np
import pytest
from networks import CLASSES, Pointwise
from PIL import Image

from hrnet_jax.data.images.orientation import upright
from hrnet_jax.inference import file_job
from hrnet_jax.inference.label_form import get_form
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.inference.video import Frame, VideoReader, VideoWriter

# Train ids 0, 1, 2 are 7, 8, 11 in label files.
IDS = np.array(CLASSES.label_ids)


@pytest.fixture(scope="module")
def predictor():
    return Predictor(Pointwise(), {"gain": np.float32(1)}, CLASSES)


def image(seed, size=(32, 40)):
    return np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(*given, output=None):
    inputs, failures = file_job.list_inputs(given, output)
    return {os.path.relpath(i.path, given[0].parent): i.name for i in inputs}, failures


def test_lists_what_there_is_and_what_is_not(tmp_path, caplog):
    touch(
        *(tmp_path, "one.png", "set/b.JPG", "set/deep/a.png", "set/film.MTS", "set/x.txt"),
        *("set/y.heic", "set/z.heic", "set/._b.jpg", "set/.ipynb_checkpoints/b.jpg"),
        *("set/.DS_Store", "set/anim.gif", "set/none"),
    )
    (tmp_path / "empty").mkdir()
    given = [tmp_path / name for name in ("one.png", "set", "empty", "gone", "set/b.JPG")]
    inputs, failures = file_job.list_inputs(given)
    assert [i.name for i in inputs] == ["one", "anim", "b", "deep/a", "film"]
    assert [i.is_video for i in inputs] == [False, True, False, False, True]
    messages = [str(f) for f in failures]
    assert "empty: contains no images or videos" in messages[0]
    assert "gone: no such image or folder" in messages[1]
    assert f"skipping 4 files in {tmp_path}/set" in caplog.text
    assert ".heic (2)" in caplog.text
    with pytest.raises(ValueError, match="no images given"):
        file_job.list_inputs([])


def test_equal_names_become_longer(tmp_path):
    touch(tmp_path, "a/x/1.png", "b/x/1.png", "a/x/2.png", "1.png", "c/3.png", "c/3.jpg")
    given = [tmp_path / name for name in ("a/x", "b/x", "1.png", "c")]
    found, failures = names_of(*given)
    assert failures == []
    assert list(found.values()) == ["a/x/1", "2", "b/x/1", f"{tmp_path.name}/1", "3.jpg", "3.png"]


def test_linked_folders_and_loops(tmp_path):
    touch(tmp_path, "in/1.png", "other/2.png", "loop/3.png", "more/4.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "other")
    (tmp_path / "loop/up").symlink_to(tmp_path / "loop")
    found, failures = names_of(tmp_path / "in", tmp_path / "loop", tmp_path / "more")
    assert list(found.values()) == ["1", "link/2", "4"]
    (failure,) = failures
    assert "loop/up is a link to" in str(failure)


@pytest.mark.parametrize("output", ["in", "in/out", "."])
def test_own_results_are_no_inputs(predictor, tmp_path, output, caplog):
    """Also where the results lie beside the images, and through a link."""
    touch(tmp_path / "in")
    for name in ("a.png", "b_overlay.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(image(0)).save(path)
    (tmp_path / "link").symlink_to(tmp_path)
    mine = [] if output in ("in", ".") else ["b_overlay"]
    for folder in (tmp_path, tmp_path / "link", tmp_path):
        inputs, failures = file_job.list_inputs([folder / "in"], tmp_path / output)
        assert [i.name for i in inputs] == ["a", *mine]
        job = file_job.FileJob(predictor, tmp_path / output, failures=failures, progress=False)
        assert job.run(inputs) == len(inputs)
    assert "are results of an earlier run and are not predicted" in caplog.text


@pytest.mark.parametrize("size_step", [1, 32])
def test_batches_give_what_single_images_give(predictor, tmp_path, size_step):
    sizes = [(32, 40)] * 3 + [(48, 40)] + [(32, 40)]
    for i, size in enumerate(sizes):
        Image.fromarray(image(i, size)).save(tmp_path / f"{i}.png")
    (tmp_path / "2b.png").write_bytes(b"no image")
    inputs, failures = file_job.list_inputs([tmp_path])
    out = tmp_path / "out"
    outputs = ("overlay", "labels", "probabilities")
    ours = Predictor(predictor.model, predictor.variables, CLASSES, size_step=size_step)
    job = file_job.FileJob(ours, out, outputs, batch_size=2, progress=False, failures=failures)
    assert job.run(inputs) == 5
    assert [str(f) for f in failures] == [
        f"{tmp_path}/2b.png is no PNG, JPEG, WebP, TIFF, BMP or PPM file (begins with b'no image')"
    ]
    assert len(list(out.iterdir())) == 15
    for i, size in enumerate(sizes):
        labels = predictor.predict(image(i, size))
        np.testing.assert_array_equal(read(out / f"{i}_labelIds.png"), IDS[labels])
        assert read(out / f"{i}_overlay.png").shape == (*size, 3)
        with np.load(out / f"{i}_probabilities.npz") as file:
            found = file["probabilities"]
        assert found.dtype == np.float16
        np.testing.assert_allclose(found, predictor.predict_proba(image(i, size)), atol=1e-3)


def test_odd_kinds_of_images_are_said_and_the_rest_is_done(predictor, tmp_path):
    pixels = image(0)
    Image.fromarray(pixels).save(tmp_path / "a_good.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b_gray.png")
    Image.fromarray(pixels).quantize(16).save(tmp_path / "c_palette.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "d_clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(tmp_path / "e_deep.png")
    inputs, failures = file_job.list_inputs([tmp_path])
    job = file_job.FileJob(
        predictor, tmp_path / "out", ("labels",), failures=failures, progress=False
    )
    assert job.run(inputs) == 3
    assert sorted(p.name[0] for p in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
    assert "d_clear.png has transparent pixels" in str(failures[0])
    assert "e_deep.png has 16 bits per channel" in str(failures[1])


@pytest.fixture
def film(tmp_path):
    """Five frames of one colour each, and an odd height."""
    path = tmp_path / "film.mp4"
    with VideoWriter(path, 10) as writer:
        for k in range(5):
            writer.add(Frame(np.full((33, 64, 3), 40 * k + 20, np.uint8), k, 1))
    return path


def test_video_there_and_back(film):
    with VideoReader(film) as reader:
        assert (reader.num_frames, reader.rate) == (5, 10)
        frames = [frame.image for frame in reader]
    assert [f.shape for f in frames] == [(32, 64, 3)] * 5
    for k, frame in enumerate(frames):
        np.testing.assert_allclose(frame.astype(int), 40 * k + 20, atol=4)


def test_videos_are_predicted_frame_by_frame(predictor, film, tmp_path):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    sound = tmp_path / "sound.mkv"
    with av.open(str(sound), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    inputs, failures = file_job.list_inputs([tmp_path / "broken.mp4", film, sound])
    out = tmp_path / "out"
    job = file_job.FileJob(predictor, out, batch_size=2, failures=failures, progress=False)
    assert job.run(inputs) == 1
    assert "broken.mp4: cannot be read as a video" in str(failures[0])
    assert "sound.mkv: contains no video" in str(failures[1])
    assert sorted(p.name for p in out.iterdir()) == ["film", "film_overlay.mp4"]
    names = sorted(p.name for p in (out / "film").iterdir())
    assert names == [f"{k:06}_labelIds.png" for k in range(5)]
    with VideoReader(film) as reader:
        first = next(iter(reader)).image
    np.testing.assert_array_equal(read(out / "film" / names[0]), IDS[predictor.predict(first)])
    with VideoReader(out / "film_overlay.mp4") as reader:
        assert reader.num_frames == 5


def test_each_frame_keeps_its_time(predictor, tmp_path):
    """A pause, a jump and a last frame that stays: in milliseconds."""
    times, durations = [0, 40, 1040, 1041, 3000], [40, 1000, 1, 1959, 500]
    with VideoWriter(tmp_path / "film.mp4", 25, Fraction(1, 1000)) as writer:
        for time, duration in zip(times, durations, strict=True):
            writer.add(Frame(image(time), time, duration))
    inputs, failures = file_job.list_inputs([tmp_path / "film.mp4"])
    job = file_job.FileJob(predictor, tmp_path / "out", failures=failures, progress=False)
    assert job.run(inputs) == 1
    for path in (tmp_path / "film.mp4", tmp_path / "out/film_overlay.mp4"):
        with av.open(str(path)) as container:
            assert container.duration == 3_500_000
            found = [frame.time for frame in container.decode(video=0)]
        np.testing.assert_allclose(found, np.array(times) / 1000, atol=1e-9)
        with VideoReader(path) as reader:
            frames = [(f.time * reader.time_base, f.duration * reader.time_base) for f in reader]
        expected = [Fraction(t, 1000) for t in times], [Fraction(d, 1000) for d in durations]
        assert frames == list(zip(*expected, strict=True))


def write_film(path, codec="mpeg4", turn=None):
    """Twelve frames at 25 per second, bright on the left and dark at the bottom."""
    picture = np.full((64, 96, 3), 20, np.uint8)
    picture[:32, :48] = 220
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        if turn:
            stream.set_display_matrix(turn)
        for _ in range(12):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return picture


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        *((s, "mpeg4") for s in (".avi", ".mkv", ".mov", ".3gp", ".nut")),
        *((s, "mpeg2video") for s in (".ts", ".mts", ".mpg", ".vob", ".mxf")),
        *((".wmv", "wmv2"), (".flv", "flv"), (".ogv", "libtheora"), (".webm", "libvpx")),
    ],
)
def test_containers(tmp_path, suffix, codec):
    path = tmp_path / f"film{suffix}"
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    write_film(path, codec)
    assert path.suffix in file_job.SUFFIXES
    with VideoReader(path) as reader:
        frames = list(reader)
        times = [float(f.time * reader.time_base) for f in frames]
    np.testing.assert_allclose(times, 0.04 * np.arange(12), atol=2e-3)
    assert frames[0].image[:28, :44].mean() > 180
    assert frames[0].image[36:].mean() < 60


# (a, b, c, d) of the display matrix -> EXIF orientation.
ONE = 65536


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((ONE, 0, 0, ONE), 1),
        ((-ONE, 0, 0, ONE), 2),
        ((-ONE, 0, 0, -ONE), 3),
        ((ONE, 0, 0, -ONE), 4),
        ((0, ONE, ONE, 0), 5),
        ((0, ONE, -ONE, 0), 6),
        ((0, -ONE, -ONE, 0), 7),
        ((0, -ONE, ONE, 0), 8),
    ],
)
def test_a_phone_held_upright(tmp_path, matrix, turn):
    a, b, c, d = matrix
    picture = write_film(tmp_path / "film.mov", turn=[a, b, 0, c, d, 0, 0, 0, 1 << 30])
    with VideoReader(tmp_path / "film.mov") as reader:
        frame = next(iter(reader)).image
    expected = upright(picture, turn).astype(int)
    assert frame.shape == expected.shape
    assert np.abs(frame - expected).mean() < 12


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"outputs": ("masks",)}, "unknown outputs .*masks"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_refuses(predictor, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        file_job.FileJob(predictor, tmp_path, **options)


def test_label_files_in_another_form(tmp_path, predictor):
    Image.fromarray(image(0)).save(tmp_path / "a.png")
    inputs, _ = file_job.list_inputs([tmp_path / "a.png"])
    form = get_form("train_ids", "_mask.png")
    job = file_job.FileJob(predictor, tmp_path / "out", ("labels",), progress=False, form=form)
    assert job.run(inputs) == 1
    assert set(np.unique(read(tmp_path / "out" / "a_mask.png"))) <= {0, 1, 2}
    # Named as the image, it would replace it.
    form = get_form("ids", ".png")
    job = file_job.FileJob(predictor, tmp_path, ("labels",), progress=False, form=form)
    with pytest.raises(ValueError, match=r"a\.png would replace an input"):
        job.run(inputs)
    with pytest.raises(ValueError, match="label form of kitti needs its classes"):
        file_job.FileJob(predictor, tmp_path, ("labels",), form=get_form("kitti"))
