import warnings

import av
import numpy as np
import pytest
from networks import CLASSES, Pointwise
from PIL import Image

from hrnet_jax.inference import file_job
from hrnet_jax.inference.predictor import Predictor
from hrnet_jax.inference.video import VideoReader, VideoWriter

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


def test_lists_what_there_is_and_what_is_not(tmp_path):
    for name in (
        "one.png",
        "set/b.JPG",
        "set/deep/a.png",
        "set/film.mp4",
        "set/x.txt",
        "two/one.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    names = ("one.png", "set", "two", "empty", "gone")
    inputs, failures = file_job.list_inputs([tmp_path / name for name in names])
    assert [i.name for i in inputs] == ["one", "b", "deep/a", "film"]
    assert [i.is_video for i in inputs] == [False, False, False, True]
    messages = [str(f) for f in failures]
    assert "one.png has the same output name 'one'" in messages[0]
    assert "empty: contains no images or videos" in messages[1]
    assert "gone: no such image or folder" in messages[2]
    with pytest.raises(ValueError, match="no images given"):
        file_job.list_inputs([])


def test_batches_give_what_single_images_give(predictor, tmp_path):
    sizes = [(32, 40)] * 3 + [(48, 40)] + [(32, 40)]
    for i, size in enumerate(sizes):
        Image.fromarray(image(i, size)).save(tmp_path / f"{i}.png")
    (tmp_path / "2b.png").write_bytes(b"no image")
    inputs, failures = file_job.list_inputs([tmp_path])
    out = tmp_path / "out"
    outputs = ("overlay", "labels", "probabilities")
    job = file_job.FileJob(predictor, out, outputs, batch_size=2, progress=False, failures=failures)
    assert job.run(inputs) == 5
    assert [str(f) for f in failures] == [
        f"{tmp_path}/2b.png: cannot be read as an image: cannot identify image file "
        f"'{tmp_path}/2b.png'"
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
    Image.fromarray(pixels[..., 0]).save(tmp_path / "b_grey.png")
    Image.fromarray(pixels).quantize(16).save(tmp_path / "c_palette.png")
    Image.fromarray(np.dstack([pixels, pixels[..., :1]])).save(tmp_path / "d_clear.png")
    Image.fromarray(pixels[..., 0].astype(np.uint16) * 256).save(tmp_path / "e_deep.png")
    inputs, failures = file_job.list_inputs([tmp_path])
    job = file_job.FileJob(
        predictor, tmp_path / "out", ("labels",), failures=failures, progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "converted from mode L"
        assert job.run(inputs) == 3
    assert sorted(p.name[0] for p in (tmp_path / "out").iterdir()) == ["a", "b", "c"]
    assert "d_clear.png: has transparent pixels" in str(failures[0])
    assert "e_deep.png: mode 'I;16' is not supported" in str(failures[1])


@pytest.fixture
def film(tmp_path):
    """Five frames of one colour each, and an odd height."""
    path = tmp_path / "film.mp4"
    with VideoWriter(path, 10) as writer:
        for k in range(5):
            writer.add(np.full((33, 64, 3), 40 * k + 20, np.uint8))
    return path


def test_video_there_and_back(film):
    with VideoReader(film) as reader:
        assert (reader.num_frames, reader.rate) == (5, 10)
        frames = list(reader)
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
        first = next(iter(reader))
    np.testing.assert_array_equal(read(out / "film" / names[0]), IDS[predictor.predict(first)])
    with VideoReader(out / "film_overlay.mp4") as reader:
        assert reader.num_frames == 5


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
