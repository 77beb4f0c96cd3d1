"""Files in and out: what is written comes back at its time, and what can't be read is refused in one sentence."""

import io
import struct
import tracemalloc
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from common import files, media
from common.errors import InputError
from common.sound import open_sound

SIZE = (64, 48)  # width, height


def tone(sample_rate_hz: int, n_samples: int, hz: float = 300.0, level: float = 0.5) -> np.ndarray:
    return level * np.sin(2 * np.pi * hz * np.arange(n_samples) / sample_rate_hz)


def grey(level: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.full((size[1], size[0], 3), level, np.uint8)


def write_grey_video(path: Path, levels: list[int], fps: Fraction | float = 25, audio_path: Path | None = None) -> None:
    with media.VideoWriter(path, *SIZE, fps=fps, audio_path=audio_path, overwrite=True) as writer:
        for level in levels:
            writer.write(grey(level))


def whole_sound(path: Path) -> np.ndarray:
    """All samples of a file at its own rate, [n, channels]."""
    return np.concatenate(list(open_sound(path).blocks))


def refusal(path: Path, read: object = media.read_audio) -> str:
    """The sentence with which a file is refused."""
    with pytest.raises(InputError) as caught:
        result = read(path)  # type: ignore[operator]
        list(result) if isinstance(result, media.VideoReader) else None
    sentence = str(caught.value)
    assert str(path) in sentence
    assert "\n" not in sentence and sentence.endswith(".") and ":" in sentence  # what is wrong: what to do
    return sentence


# --- sound ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au"])
@pytest.mark.parametrize(("sample_rate_hz", "n_channels"), [(8000, 1), (16000, 2), (44100, 2), (48000, 1)])
def test_recordings_of_any_format_come_back_at_16_khz(
    tmp_path: Path, suffix: str, sample_rate_hz: int, n_channels: int
) -> None:
    n = round(0.7 * sample_rate_hz)
    path = tmp_path / f"tone.{suffix}"
    soundfile.write(path, np.stack([tone(sample_rate_hz, n)] * n_channels, 1), sample_rate_hz)
    audio = media.read_audio(path)
    assert audio.dtype == np.float32 and audio.shape == (11200,)
    middle = slice(2000, -2000)  # lossy coders ring at the ends
    np.testing.assert_allclose(audio[middle], tone(16000, 11200)[middle], atol=0.05)  # a shift by one sample: 0.06


@pytest.mark.parametrize("sample_rate_hz", [6000, 11025, 37800, 96000, 192000])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_24", "FLOAT", "DOUBLE", "ULAW", "MS_ADPCM"])
def test_unusual_rates_and_sample_formats_are_read(tmp_path: Path, sample_rate_hz: int, subtype: str) -> None:
    path = tmp_path / "tone.wav"
    n = sample_rate_hz // 5  # 0.2 s
    soundfile.write(path, tone(sample_rate_hz, n), sample_rate_hz, subtype=subtype)
    audio = media.read_audio(path)
    assert 0 <= len(audio) - 3200 <= 1400  # ADPCM pads its last block
    np.testing.assert_allclose(audio[400:2800], tone(16000, 3200)[400:2800], atol=0.05)  # a shift by one sample: 0.06


def test_a_click_keeps_its_sample_through_resampling(tmp_path: Path) -> None:
    samples = np.zeros(48000 * 3)
    samples[3 * 20011] = 0.9
    soundfile.write(tmp_path / "click.wav", samples, 48000)
    assert np.abs(media.read_audio(tmp_path / "click.wav")).argmax() == 20011


@pytest.mark.parametrize("n_channels", [2, 3, 6, 8])
def test_channels_are_mixed_to_their_mean(tmp_path: Path, n_channels: int) -> None:
    gains = np.linspace(-0.2, 1, n_channels)
    soundfile.write(tmp_path / "many.wav", tone(16000, 8000)[:, None] * gains, 16000)
    np.testing.assert_allclose(media.read_audio(tmp_path / "many.wav"), tone(16000, 8000) * gains.mean(), atol=1e-4)


def test_a_float_recording_beyond_full_scale_is_scaled_not_cut(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "loud.wav", tone(16000, 16000, level=20000), 16000, subtype="FLOAT")
    audio = media.read_audio(tmp_path / "loud.wav")
    np.testing.assert_allclose(audio, tone(16000, 16000, level=1), atol=1e-3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_numbers_are_refused_with_their_time(tmp_path: Path, bad: float) -> None:
    samples = tone(16000, 16000)
    samples[8000] = bad
    soundfile.write(tmp_path / "bad.wav", samples, 16000, subtype="FLOAT")
    assert "0.50 s" in refusal(tmp_path / "bad.wav")


def test_a_wav_from_a_pipe_has_no_length_in_its_header_and_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe.wav"
    soundfile.write(path, tone(16000, 16000), 16000)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"
    path.write_bytes(content)
    assert len(media.read_audio(path)) == 16000


def test_sound_without_an_end_is_read_in_blocks(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.zeros((300 * 16000, 2), np.int16), 16000)  # 38 MB as float32
    tracemalloc.start()
    n = sum(len(block) for block in open_sound(path).blocks)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert n == 300 * 16000
    assert peak < 4e6


@pytest.mark.parametrize("suffix", ["wav", "mp3", "ogg", "flac", "m4a", "mp4", "mkv", "raw", "jpg", "txt"])
@pytest.mark.parametrize(
    "content",
    [b"", b"hello\n" * 999, b"#EXTM3U\n#EXTINF:9,\nother.ts\n", bytes(5000), np.random.default_rng(0).bytes(50000)],
    ids=["empty", "text", "playlist", "zeros", "noise"],
)
def test_what_is_no_media_file_is_refused_in_one_sentence(
    tmp_path: Path, suffix: str, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"file.{suffix}"
    path.write_bytes(content)
    for read in (media.read_audio, media.read_picture, media.VideoReader):
        refusal(path, read)
    assert capfd.readouterr() == ("", "")  # the decoders keep quiet: the sentence is all the user sees


@pytest.mark.parametrize("read", [media.read_audio, media.read_picture, media.VideoReader])
def test_folders_missing_files_and_impossible_names_are_refused(tmp_path: Path, read: object) -> None:
    assert "folder" in refusal(tmp_path, read)
    refusal(tmp_path / "missing.wav", read)
    refusal(tmp_path / ("x" * 300), read)
    refusal(tmp_path / "nul\0.wav", read)
    refusal(Path("/dev/null"), read)


def test_a_recording_without_samples_is_refused(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "none.wav", np.zeros(0), 16000)
    assert "no sound" in refusal(tmp_path / "none.wav")


def test_names_that_look_like_addresses_or_are_not_unicode_are_just_names(tmp_path: Path) -> None:
    for name in (
        "http:x.mp3",
        "-.mp3",
        "a b%20ü'\".mp3",
        "pipe:0.mp3",
        b"\xff\xfe.mp3".decode(errors="surrogateescape"),
    ):
        soundfile.write(io.BytesIO(), tone(16000, 10), 16000, format="WAV")
        buffer = io.BytesIO()
        soundfile.write(buffer, tone(16000, 16000), 16000, format="MP3")
        (tmp_path / name).write_bytes(buffer.getvalue())
        assert len(media.read_audio(tmp_path / name)) == 16000


@pytest.fixture(scope="module")
def samples_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One second of a tone in every container whose header states a length."""
    folder = tmp_path_factory.mktemp("samples")
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 48000)
    for suffix in ("wav", "flac", "ogg", "mp3", "aiff", "au"):
        soundfile.write(folder / f"a.{suffix}", noise, 48000)
    write_grey_video(folder / "a.mp4", list(range(20, 200, 7)), audio_path=folder / "a.wav")
    for suffix, codec in (("mkv", "aac"), ("webm", "libopus"), ("m4a", "aac")):
        with av.open(str(folder / f"a.{suffix}"), "w", format="ipod" if suffix == "m4a" else None) as container:
            stream: Any = container.add_stream(codec, rate=48000, layout="mono", bit_rate=256_000)
            frame = av.AudioFrame.from_ndarray(noise[None].astype(np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            if codec == "libopus":
                frame = av.AudioResampler(format="flt").resample(frame)[0]
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return folder


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3", "aiff", "au", "mp4", "mkv", "webm", "m4a"])
def test_a_whole_file_is_read_and_every_truncation_is_refused(samples_dir: Path, tmp_path: Path, suffix: str) -> None:
    content = (samples_dir / f"a.{suffix}").read_bytes()
    surplus = len(media.read_audio(samples_dir / f"a.{suffix}")) - 16000
    assert 0 <= surplus <= (1024 if suffix == "mkv" else 0)  # Matroska does not say where in its last frame AAC ends
    for share in (0.001, 0.01, 0.1, 0.3, 0.5, 0.8, 0.93):
        path = tmp_path / f"cut.{suffix}"
        path.write_bytes(content[: int(share * len(content))])
        refusal(path)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    suffix=st.sampled_from(["wav", "flac", "ogg", "mp3", "aiff", "au", "mp4", "mkv", "webm", "m4a"]),
    damage=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=6)), min_size=1, max_size=5),
)
def test_damaged_files_are_read_or_refused_and_nothing_else(
    samples_dir: Path, tmp_path: Path, suffix: str, damage: list[tuple[float, bytes]]
) -> None:
    content = bytearray((samples_dir / f"a.{suffix}").read_bytes())
    for place, new in damage:
        at = int(place**3 * (len(content) - len(new)))  # mostly in the headers
        content[at : at + len(new)] = new
    path = tmp_path / f"damaged.{suffix}"
    path.write_bytes(content)
    try:
        audio = media.read_audio(path)
    except InputError:
        return
    assert len(audio) and np.isfinite(audio).all() and np.abs(audio).max() <= 1


# --- pictures ------------------------------------------------------------------------------------------------------


def colours(width: int = 80, height: int = 64) -> np.ndarray:
    """A smooth coloured picture without symmetries, uint8 [H, W, 3]."""
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([x * 255 // width, y * 255 // height, (x + 2 * y) % 256 // 2], 2).astype(np.uint8)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp", "tif"])
def test_written_pictures_come_back(tmp_path: Path, suffix: str) -> None:
    media.write_picture(tmp_path / f"a.{suffix}", colours())
    back = media.read_picture(tmp_path / f"a.{suffix}").astype(int)
    assert np.abs(back - colours()).mean() < (3 if suffix in ("jpg", "webp") else 0.01)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, orientation: int, suffix: str) -> None:
    upright = colours()
    # What a camera held that way stores: the EXIF table of TIFF 6.0, row 0 and column 0 of the stored picture.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[media.ORIENTATION] = orientation
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, quality=95)
    back = media.read_picture(path)
    assert back.shape == upright.shape
    assert np.abs(back.astype(int) - upright).mean() < 3


def test_broken_exif_does_not_stop_the_picture(tmp_path: Path) -> None:
    Image.fromarray(colours()).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xffgarbage", quality=95)
    assert media.read_picture(tmp_path / "a.jpg").shape == colours().shape


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = np.dstack([colours(), np.full(colours().shape[:2], 255, np.uint8)])
    rgba[:20, :, 3] = 0
    rgba[20:40, :, 3] = 128
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    back = media.read_picture(tmp_path / "rgba.png")
    assert (back[:20] == 255).all()
    np.testing.assert_array_equal(back[40:], colours()[40:])
    np.testing.assert_allclose(back[20:40], (colours()[20:40].astype(float) + 255) / 2, atol=1.5)

    palette = Image.new("P", (64, 64), 1)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.paste(0, (0, 0, 32, 64))
    palette.save(tmp_path / "palette.png", transparency=0)
    palette.save(tmp_path / "palette.gif", transparency=0)
    for name in ("palette.png", "palette.gif"):
        back = media.read_picture(tmp_path / name)
        assert (back[:, :32] == 255).all() and (back[:, 32:] == (200, 100, 50)).all()

    Image.fromarray(np.dstack([colours()[..., 0], rgba[..., 3]]), "LA").save(tmp_path / "la.png")
    assert (media.read_picture(tmp_path / "la.png")[:20] == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "LAB", "HSV"])
def test_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("a.png" if mode in ("1", "L", "P") else "a.tif" if mode != "HSV" else "a.gif")
    flat = Image.new("RGB", (64, 64), (200, 200, 200) if mode in ("1", "L") else (180, 90, 60))
    if mode == "LAB":
        lab = ImageCms.profileToProfile(
            flat, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
        )
        assert lab is not None
        lab.save(path)
    else:
        (flat.convert(mode) if mode != "HSV" else flat).save(path)
    back = media.read_picture(path).reshape(-1, 3).mean(0)
    np.testing.assert_allclose(back, np.asarray(flat)[0, 0], atol=8 if mode != "1" else 20)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm", "big.tif"])
def test_sixteen_bit_grey_keeps_its_tones(tmp_path: Path, name: str) -> None:
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    image = Image.fromarray(ramp.astype(">u2") if name == "big.tif" else ramp)
    image.save(tmp_path / name)
    back = media.read_picture(tmp_path / name)
    np.testing.assert_allclose(back[..., 0], ramp / 257, atol=0.51)
    assert (back[..., 0] == back[..., 1]).all() and (back[..., 0] == back[..., 2]).all()


def test_a_dark_sixteen_bit_picture_stays_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((64, 64), 200, np.uint16)).save(tmp_path / "dark.png")
    assert media.read_picture(tmp_path / "dark.png").max() == 1


def test_sixteen_bit_colour_and_float_grey_are_read(tmp_path: Path) -> None:
    deep = colours().astype(np.uint16) * 257
    with av.open(str(tmp_path / "deep.png"), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1, width=80, height=64, pix_fmt="rgb48be")
        container.mux(stream.encode(av.VideoFrame.from_ndarray(deep, format="rgb48le").reformat(format="rgb48be")))
        container.mux(stream.encode(None))
    np.testing.assert_allclose(media.read_picture(tmp_path / "deep.png"), colours(), atol=1)

    for name, scale in (("unit.tif", 1), ("byte.tif", 255)):
        values = np.linspace(0, scale, 4096, dtype=np.float32).reshape(64, 64)
        Image.fromarray(values).save(tmp_path / name)
        np.testing.assert_allclose(media.read_picture(tmp_path / name)[..., 0], values * (255 / scale), atol=0.51)


def test_an_embedded_colour_profile_is_applied(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    # A profile whose red primary is sRGB's green and the other way round.
    swapped = profile.replace(b"rXYZ", b"tmpX").replace(b"gXYZ", b"rXYZ").replace(b"tmpX", b"gXYZ")
    Image.new("RGB", (64, 64), (220, 30, 40)).save(tmp_path / "swapped.png", icc_profile=swapped)
    np.testing.assert_allclose(media.read_picture(tmp_path / "swapped.png")[0, 0], (30, 220, 40), atol=3)
    Image.new("RGB", (64, 64), (220, 30, 40)).save(tmp_path / "broken.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(media.read_picture(tmp_path / "broken.png")[0, 0], (220, 30, 40))


def test_the_sides_of_a_picture_have_limits(tmp_path: Path) -> None:
    for size, is_fine in (((64, 64), True), ((63, 100), False), ((8000, 64), True), ((8001, 64), False)):
        path = tmp_path / f"{size[0]}.png"
        Image.new("L", size).save(path)
        if is_fine:
            assert media.read_picture(path).shape == (size[1], size[0], 3)
        else:
            assert "64 to 8000" in refusal(path, media.read_picture)


def test_a_picture_that_promises_gigabytes_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    Image.new("L", (64, 64)).save(tmp_path / "bomb.png")
    content = bytearray((tmp_path / "bomb.png").read_bytes())
    content[16:24] = struct.pack(">II", 500_000, 500_000)
    (tmp_path / "bomb.png").write_bytes(content)
    refusal(tmp_path / "bomb.png", media.read_picture)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif"])
def test_truncated_pictures_are_refused(tmp_path: Path, suffix: str) -> None:
    whole = tmp_path / f"a.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    Image.fromarray(noise).save(whole)
    content = whole.read_bytes()
    for share in (0.001, 0.01, 0.1, 0.5, 0.9):
        (tmp_path / f"cut.{suffix}").write_bytes(content[: int(share * len(content))])
        refusal(tmp_path / f"cut.{suffix}", media.read_picture)


def test_a_picture_needs_the_suffix_of_a_picture(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.png"):
        media.write_picture(tmp_path / "a.mp3", colours())


# --- video ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [25, 24, 30, 60, Fraction(30000, 1001), 30000 / 1001, 12.5])
def test_frames_come_back_in_order_at_their_exact_times(tmp_path: Path, fps: float) -> None:
    levels = [20 + 9 * k for k in range(25)]
    write_grey_video(tmp_path / "a.mp4", levels, fps)
    with media.VideoReader(tmp_path / "a.mp4") as reader:
        assert (reader.width, reader.height, reader.rotation) == (*SIZE, 0)
        assert reader.fps == media.exact_fps(fps)
        assert reader.duration_s == pytest.approx(25 / float(fps), abs=1e-3)
        frames = list(reader)
        assert [time_s for time_s, _ in frames] == pytest.approx([k / float(fps) for k in range(25)], abs=1e-9)
        assert [round(frame.mean()) for _, frame in frames] == pytest.approx(levels, abs=2)
        assert [round(frame.mean()) for frame in reader.frames_at(reader.fps)] == pytest.approx(levels, abs=2)


def test_a_video_is_h264_with_even_colour_and_says_that_it_is_generated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100, 44100), 44100)
    with media.VideoWriter(tmp_path / "a.mp4", 64, 64, audio_path=tmp_path / "a.wav", comment="Seed 3.") as writer:
        for _ in range(25):
            writer.write(grey(90, (64, 64)))
    with av.open(str(tmp_path / "a.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt, video.average_rate) == ("h264", "yuv420p", 25)
        assert (video.codec_context.colorspace, video.codec_context.color_range) == (1, 1)
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 44100, "mono")
        assert container.metadata["comment"] == "Seed 3." and "Generated by AI" in container.metadata["description"]
        assert not any("date" in key or "time" in key for key in container.metadata)
    content = (tmp_path / "a.mp4").read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")  # players can start before the whole file is there


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 150, 130), (0, 0, 0), (255, 255, 255)])
def test_colours_survive(tmp_path: Path, colour: tuple[int, int, int]) -> None:
    with media.VideoWriter(tmp_path / "a.mp4", 64, 64, crf=10) as writer:
        for _ in range(3):
            writer.write(np.full((64, 64, 3), colour, np.uint8))
    # 8-bit limited-range YUV keeps colours to about two levels; a mix-up of BT.601 and BT.709 costs twenty.
    for _, frame in media.VideoReader(tmp_path / "a.mp4"):
        np.testing.assert_allclose(frame.reshape(-1, 3).mean(0), colour, atol=4)


@pytest.mark.parametrize(
    ("sample_rate_hz", "n_channels", "n_samples", "fps"),
    [
        (16000, 1, 16000 * 3 + 333, 25),
        (44100, 2, 44100 * 2 + 1, 25),
        (48000, 1, 48000 * 2, Fraction(30000, 1001)),
        (8000, 1, 1601, 25),  # 0.2 s
        (22050, 2, 22050 * 2 + 77, 30),
    ],
)
def test_sound_is_in_the_video_to_the_sample(
    tmp_path: Path, sample_rate_hz: int, n_channels: int, n_samples: int, fps: Fraction | int
) -> None:
    clicks = [0, n_samples // 4, n_samples // 2 + 13, n_samples - 1]
    samples = np.zeros((n_samples, n_channels))
    samples[clicks] = 0.8
    soundfile.write(tmp_path / "a.wav", samples, sample_rate_hz)
    n_frames = -int(-n_samples * fps // sample_rate_hz)
    write_grey_video(tmp_path / "a.mp4", [100] * n_frames, fps, tmp_path / "a.wav")

    with av.open(str(tmp_path / "a.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.frames == n_frames and video.start_time == 0 and audio.start_time == 0
        assert (video.duration or 0) * Fraction(video.time_base or 0) == n_frames / Fraction(fps)
        assert (audio.duration or 0) * Fraction(audio.time_base or 0) == Fraction(n_samples, sample_rate_hz)
    back = whole_sound(tmp_path / "a.mp4")
    assert back.shape == samples.shape
    for click in clicks:
        near = slice(max(0, click - 150), click + 150)
        assert near.start + np.abs(back[near, 0]).argmax() == click


@pytest.mark.parametrize("sample_rate_hz", [6000, 37800, 192000])
def test_rates_that_aac_lacks_become_48_khz_without_a_shift(tmp_path: Path, sample_rate_hz: int) -> None:
    samples = np.zeros(sample_rate_hz)
    samples[sample_rate_hz // 2] = 0.8
    soundfile.write(tmp_path / "a.wav", samples, sample_rate_hz)
    write_grey_video(tmp_path / "a.mp4", [100] * 25, audio_path=tmp_path / "a.wav")
    back = whole_sound(tmp_path / "a.mp4")
    assert back.shape == (48000, 1) and np.abs(back).argmax() == 24000


def test_more_than_two_channels_become_one(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", np.stack([tone(16000, 16000)] * 6, 1), 16000)
    write_grey_video(tmp_path / "a.mp4", [100] * 25, audio_path=tmp_path / "a.wav")
    assert whole_sound(tmp_path / "a.mp4").shape == (16000, 1)


def test_sound_and_picture_are_together_after_ten_minutes(tmp_path: Path) -> None:
    """A white frame at each click; the file is read back from the container's own times."""
    rate, seconds = 8000, [0, 1, 300, 599.96]
    samples = np.zeros(600 * rate, np.float32)
    samples[[round(s * rate) for s in seconds]] = 0.8
    soundfile.write(tmp_path / "a.wav", samples, rate)
    flashes = {round(s * 25) for s in seconds}
    with media.VideoWriter(tmp_path / "a.mp4", 16, 16, audio_path=tmp_path / "a.wav") as writer:
        for k in range(600 * 25):
            writer.write(grey(255 if k in flashes else 0, (16, 16)))

    seen = [time_s for time_s, frame in media.VideoReader(tmp_path / "a.mp4") if frame.mean() > 128]
    assert seen == pytest.approx(seconds, abs=1e-9)
    back = whole_sound(tmp_path / "a.mp4")[:, 0]
    assert len(back) == 600 * rate
    heard = np.flatnonzero(np.abs(back) > 0.4)
    np.testing.assert_array_equal(heard, [round(s * rate) for s in seconds])


def test_writing_and_reading_hold_no_more_than_a_few_frames(tmp_path: Path) -> None:
    n, side = 100, 256
    soundfile.write(tmp_path / "a.wav", np.zeros(n * 1920, np.int16), 48000)
    frame = grey(100, (side, side))
    tracemalloc.start()
    with media.VideoWriter(tmp_path / "a.mp4", side, side, audio_path=tmp_path / "a.wav") as writer:
        for _ in range(n):
            writer.write(frame)
    assert sum(1 for _ in media.VideoReader(tmp_path / "a.mp4").frames_at(50)) == 2 * n
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10 * frame.nbytes


def test_sound_longer_than_the_picture_is_cut_and_shorter_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 48000), 16000)
    write_grey_video(tmp_path / "short.mp4", [100] * 20, audio_path=tmp_path / "a.wav")
    assert len(whole_sound(tmp_path / "short.mp4")) == 20 * 640
    assert "cut" in caplog.text
    write_grey_video(tmp_path / "long.mp4", [100] * 100, audio_path=tmp_path / "a.wav")
    assert len(whole_sound(tmp_path / "long.mp4")) == 48000
    write_grey_video(tmp_path / "near.mp4", [100] * 74, audio_path=tmp_path / "a.wav")  # one frame less: all is kept
    assert len(whole_sound(tmp_path / "near.mp4")) == 48000


def test_the_same_frames_give_the_same_file(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (30, 48, 64, 3), np.uint8)
    soundfile.write(tmp_path / "a.wav", tone(16000, 16000), 16000)
    for name in ("one.mp4", "two.mp4"):
        with media.VideoWriter(tmp_path / name, 64, 48, audio_path=tmp_path / "a.wav") as writer:
            for frame in frames:
                writer.write(frame)
    assert (tmp_path / "one.mp4").read_bytes() == (tmp_path / "two.mp4").read_bytes()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_video_that_fails_half_way_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 16000), 16000)
    (tmp_path / "old.mp4").write_bytes(b"precious")
    for name in ("new.mp4", "old.mp4"):
        with (
            pytest.raises(error),
            media.VideoWriter(tmp_path / name, *SIZE, audio_path=tmp_path / "a.wav", overwrite=True) as writer,
        ):
            writer.write(grey(10))
            raise error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.wav", "old.mp4"]
    assert (tmp_path / "old.mp4").read_bytes() == b"precious"


def test_a_recording_that_breaks_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    samples = tone(16000, 16000 * 20)
    samples[16000 * 15] = np.nan
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    with pytest.raises(InputError, match="not numbers"):
        write_grey_video(tmp_path / "a.mp4", [100] * 500, audio_path=tmp_path / "a.wav")
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_a_video_without_frames_and_frames_of_another_size_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no frame"), media.VideoWriter(tmp_path / "a.mp4", 64, 64):
        pass
    with pytest.raises(ValueError, match=r"\[64, 64, 3\]"), media.VideoWriter(tmp_path / "a.mp4", 64, 64) as writer:
        writer.write(grey(0, (32, 64)))
    with pytest.raises(ValueError, match="even"):
        media.VideoWriter(tmp_path / "a.mp4", 63, 64)
    with pytest.raises(InputError, match=r"\.mp4"):
        media.VideoWriter(tmp_path / "a.avi", 64, 64)
    assert not list(tmp_path.iterdir())


def test_outputs_are_not_overwritten_unless_allowed_and_folders_are_made(tmp_path: Path) -> None:
    write_grey_video(tmp_path / "new" / "folder" / "a.mp4", [10])
    with pytest.raises(InputError, match="overwrite"):
        files.check_output(tmp_path / "new" / "folder" / "a.mp4")
    files.check_output(tmp_path / "new" / "folder" / "a.mp4", overwrite=True)
    with pytest.raises(InputError, match="folder"):
        files.check_output(tmp_path / "new", overwrite=True)
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="another place"):
        files.check_output(tmp_path / "file" / "a.mp4")


def test_atomic_path_replaces_only_on_success(tmp_path: Path) -> None:
    target = tmp_path / "a.json"
    with files.atomic_path(target) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".json"
        temporary.write_text("one")
        assert not target.exists()
    with pytest.raises(KeyError), files.atomic_path(target, overwrite=True) as temporary:
        temporary.write_text("half")
        raise KeyError
    with pytest.raises(InputError), files.atomic_path(target):
        pass
    assert target.read_text() == "one" and [path.name for path in tmp_path.iterdir()] == ["a.json"]


def display_matrix(rotation: int) -> bytes:
    """The 3x3 matrix of an MP4 track header that turns the picture clockwise; fixed point, as phones write it."""
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[rotation]
    return struct.pack(">9i", a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30)


@pytest.mark.parametrize("clockwise", [0, 90, 180, 270])
def test_videos_of_turned_phones_are_upright(tmp_path: Path, clockwise: int) -> None:
    upright = np.full((64, 96, 3), 128, np.uint8)
    upright[:24, :32] = (230, 30, 30)
    upright[40:, :32] = (30, 30, 230)
    stored = np.ascontiguousarray(np.rot90(upright, clockwise // 90))  # counterclockwise: what the turned sensor sees
    with media.VideoWriter(tmp_path / "a.mp4", stored.shape[1], stored.shape[0]) as writer:
        for _ in range(5):
            writer.write(stored)
    content = (tmp_path / "a.mp4").read_bytes()
    track = content.index(b"tkhd")
    at = content.index(display_matrix(0), track)
    (tmp_path / "a.mp4").write_bytes(content[:at] + display_matrix(clockwise) + content[at + 36 :])

    reader = media.VideoReader(tmp_path / "a.mp4")
    assert (reader.width, reader.height) == (96, 64)
    frames = [frame for _, frame in reader]
    assert len(frames) == 5 and frames[0].shape == (64, 96, 3)
    assert np.abs(frames[0].astype(int) - upright).mean() < 4


def write_timed_video(
    path: Path, pts: list[int], time_base: Fraction, levels: list[int], **stream_options: object
) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30, width=64, height=48, pix_fmt="yuv420p", options={"bf": "2"})
        stream.codec_context.time_base = time_base
        for name, value in stream_options.items():
            setattr(stream.codec_context, name, value)
        for time, level in zip(pts, levels, strict=True):
            frame = av.VideoFrame.from_ndarray(grey(level), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_a_variable_rate_keeps_its_times_and_becomes_constant_on_demand(tmp_path: Path, suffix: str) -> None:
    times_ms = [0, 40, 55, 200, 240, 1000, 1040]
    levels = [20, 50, 80, 110, 140, 170, 200]
    write_timed_video(tmp_path / f"a.{suffix}", times_ms, Fraction(1, 1000), levels)
    reader = media.VideoReader(tmp_path / f"a.{suffix}")
    assert [time_s for time_s, _ in reader] == pytest.approx([t / 1000 for t in times_ms], abs=1e-9)

    # Frame k is the picture shown at (k + 1/2) / fps: a slow loop over the list of times.
    expected = [max(i for i, t in enumerate(times_ms) if t <= 20 + 40 * k) for k in range(27)]
    got = [round(float(frame.mean())) for frame in reader.frames_at(25)]
    assert got[:27] == pytest.approx([levels[i] for i in expected], abs=3)
    assert set(got[27:]) <= {got[26]} and len(got) <= 31  # the last picture's duration is the muxer's guess


def test_frames_at_another_rate_last_as_long(tmp_path: Path) -> None:
    write_grey_video(tmp_path / "a.mp4", [100] * 50, fps=Fraction(30000, 1001))
    reader = media.VideoReader(tmp_path / "a.mp4")
    for fps in (25, 10, 60, Fraction(24000, 1001)):
        assert abs(sum(1 for _ in reader.frames_at(fps)) - 50 / reader.fps * fps) <= 0.5


def test_pixels_that_are_not_square_are_made_square(tmp_path: Path) -> None:
    times = list(range(3))
    write_timed_video(tmp_path / "a.mp4", times, Fraction(1, 25), [100] * 3, sample_aspect_ratio=Fraction(3, 2))
    reader = media.VideoReader(tmp_path / "a.mp4")
    assert (reader.width, reader.height) == (96, 48)
    assert next(iter(reader))[1].shape == (48, 96, 3)


def test_sound_that_starts_late_or_pauses_keeps_its_place_beside_the_picture(tmp_path: Path) -> None:
    """A video whose sound begins at 0.5 s and is silent from 1.0 to 1.4 s, by time stamps only."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        video = container.add_stream("libx264", rate=25, width=64, height=48, pix_fmt="yuv420p")
        audio = container.add_stream("pcm_s16le", rate=16000, layout="mono")
        for k in range(50):
            frame = av.VideoFrame.from_ndarray(grey(100), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = k, Fraction(1, 25)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for start in (8000, 22400):
            block = np.full((1, 8000), 8000, np.int16)
            sound = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            sound.sample_rate, sound.pts, sound.time_base = 16000, start, Fraction(1, 16000)
            container.mux(audio.encode(sound))
        container.mux(audio.encode(None))
    expected = np.zeros(30400)
    expected[8000:16000] = expected[22400:] = 8000 / 32768
    np.testing.assert_allclose(media.read_audio(tmp_path / "a.mkv"), expected, atol=1e-4)


def test_a_video_without_sound_and_a_sound_without_video_are_told_apart(tmp_path: Path) -> None:
    write_grey_video(tmp_path / "silent.mp4", [100] * 5)
    assert "no sound" in refusal(tmp_path / "silent.mp4")
    soundfile.write(tmp_path / "a.wav", tone(16000, 16000), 16000)
    assert "no picture" in refusal(tmp_path / "a.wav", media.VideoReader)


def test_tags_that_are_not_unicode_do_not_matter(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(16000, 16000), 16000)
    with media.VideoWriter(tmp_path / "a.mp4", 64, 64, audio_path=tmp_path / "a.wav", comment="XXXX") as writer:
        for _ in range(25):
            writer.write(grey(10, (64, 64)))
    path = tmp_path / "latin.mp4"
    path.write_bytes((tmp_path / "a.mp4").read_bytes().replace(b"XXXX", b"\xe9\xff\xfe\xe9"))
    assert len(media.read_audio(path)) == 16000 and len(list(media.VideoReader(path))) == 25


def test_a_picture_attached_to_a_song_is_no_video(tmp_path: Path) -> None:
    media.write_picture(tmp_path / "cover.png", colours())
    soundfile.write(tmp_path / "plain.mp3", tone(16000, 16000), 16000)
    jpeg = io.BytesIO()
    Image.fromarray(colours()).save(jpeg, "JPEG")
    body = b"\0image/jpeg\0\x03\0" + jpeg.getvalue()
    frame = b"APIC" + struct.pack(">IH", len(body), 0) + body
    size = bytes((len(frame) >> shift) & 0x7F for shift in (21, 14, 7, 0))
    (tmp_path / "a.mp3").write_bytes(b"ID3\x03\0\0" + size + frame + (tmp_path / "plain.mp3").read_bytes())
    assert len(media.read_audio(tmp_path / "a.mp3")) == 16000
    assert "no picture track" in refusal(tmp_path / "a.mp3", media.VideoReader)
