"""Files of many kinds, for a classifier of file types: the repository's, those that the benchmark's Python packages
bring along, and some that are made. Of each kind every other one is for calibration, so that both halves have all kinds.
"""

import bz2
import gzip
import io
import json
import lzma
import os
import pickle
import sqlite3
import sysconfig
import tarfile
import wave
import zipfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent.parent
# Of each of these endings up to `EACH` files, spread evenly over those that there are.
ENDINGS = (
    ".a .bat .c .cc .cfg .cpp .css .csv .cu .cuh .dat .exe .f .f90 .g4 .gif .gz .h .ini .jpg .json .lark .lock .mat .md"
    " .npy .npz .nzb .onnx .pb .pem .png .proto .pxd .py .pyc .pyf .pyi .pyx .rs .rst .sav .sh .so .tif .toml .txt .wav"
    " .xml .xsl .yml"
).split()
EACH = 4
# What says little is left out, and what takes long to read.
SIZES = range(256, 1 << 22)


def found():
    """Contents of files that there are, by ending."""
    import skimage

    repository = [ROOT / name for name in ("src", "onnx_tools", "cpp", "python", "docs", "tests", "xtask", ".github")]
    folders = [*repository, Path(skimage.__file__).parent.parent, Path(sysconfig.get_path("stdlib"))]
    by_ending = {ending: [] for ending in ENDINGS}
    files = [path for path in sorted(ROOT.iterdir()) if path.is_file()]
    for folder in folders:
        for at, inner, names in os.walk(folder):
            # The standard library may have other packages in it.
            inner[:] = sorted(set(inner) - {"site-packages", "dist-packages", "target"} - ({"test"} & {folder.name}))
            files += [Path(at) / name for name in sorted(names)]
    for path in files:
        of = by_ending.get(path.suffix)
        if of is not None and not path.is_symlink() and path.stat().st_size in SIZES:
            of.append(path)
    for paths in by_ending.values():
        places = np.linspace(0, len(paths) - 1, min(len(paths), EACH)).astype(int)
        yield [paths[place].read_bytes() for place in places]


def pictures_as(pictures, form, **options):
    contents = []
    for picture in pictures:
        out = io.BytesIO()
        picture.resize((128, 96)).save(out, form, **options)
        contents.append(out.getvalue())
    return contents


def packed(texts):
    """Texts in archives of several kinds, and compressed."""

    def archive(write):
        contents = []
        for i, text in enumerate(texts):
            out = io.BytesIO()
            write(out, f"notes/{i}.txt", text)
            contents.append(out.getvalue())
        return contents

    def zipped(out, name, text):
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr(zipfile.ZipInfo(name), text)

    def tarred(out, name, text):
        with tarfile.open(fileobj=out, mode="w") as file:
            about = tarfile.TarInfo(name)
            about.size = len(text)
            file.addfile(about, io.BytesIO(text))

    yield archive(zipped)
    yield archive(tarred)
    for press in (lambda text: gzip.compress(text, mtime=0), bz2.compress, lzma.compress):
        yield [press(text) for text in texts]


def database(rows):
    connection = sqlite3.connect(":memory:")
    connection.execute("create table notes (number integer primary key, text text)")
    connection.executemany("insert into notes (text) values (?)", [(row,) for row in rows])
    connection.commit()
    return connection.serialize()


def sound(seed):
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setparams((1, 2, 16000, 0, "NONE", ""))
        file.writeframes((3000 * np.random.default_rng(seed).standard_normal(4000)).astype("<i2").tobytes())
    return out.getvalue()


def page(lines):
    items = "\n".join(f'    <li class="note"><a href="#{i}">{line}</a></li>' for i, line in enumerate(lines))
    return f"<!DOCTYPE html>\n<html>\n<head><title>{lines[0]}</title></head>\n<body>\n  <ul>\n{items}\n  </ul>\n</body>\n</html>\n"


def mail(lines):
    head = f"From: Ann <ann@example.org>\nTo: Ben <ben@example.org>\nSubject: {lines[0]}\nMIME-Version: 1.0\n"
    return head + "Content-Type: text/plain; charset=utf-8\n\n" + "\n".join(lines) + "\n"


def script(lines):
    shown = "\n".join(f'  print("{line}");' for line in lines)
    return f"function notes(count) {{\n  const all = [];\n{shown.replace('print', 'console.log')}\n  return all.slice(0, count);\n}}\n\nmodule.exports = {{ notes }};\n"


def java(lines):
    shown = "\n".join(f'        System.out.println("{line}");' for line in lines)
    return f"package org.example;\n\nimport java.util.List;\n\npublic class Notes {{\n    public static void main(String[] args) {{\n{shown}\n    }}\n}}\n"


def go(lines):
    shown = "\n".join(f'\tfmt.Println("{line}")' for line in lines)
    return f'package main\n\nimport "fmt"\n\nfunc main() {{\n{shown}\n}}\n'


def php(lines):
    return "<?php\nnamespace Notes;\n\n" + "\n".join(f"$notes[] = '{line}';" for line in lines) + "\necho count($notes);\n"


def ruby(lines):
    return "require 'json'\n\nclass Notes\n  def all\n    [\n" + ",\n".join(f'      "{x}"' for x in lines) + "\n    ]\n  end\nend\n"


def sql(lines):
    rows = "\n".join(f"INSERT INTO notes (id, text) VALUES ({i}, '{line}');" for i, line in enumerate(lines))
    return f"CREATE TABLE notes (id INTEGER PRIMARY KEY, text TEXT NOT NULL);\n{rows}\nSELECT text FROM notes ORDER BY id;\n"


def table(lines):
    return "number,length,text\n" + "\n".join(f'{i},{len(line)},"{line}"' for i, line in enumerate(lines)) + "\n"


def marked_up(lines):
    return "<?xml version=\"1.0\"?>\n<notes>\n" + "\n".join(f"  <note>{x}</note>" for x in lines) + "\n</notes>\n"


def made(sentences, pictures):
    """Contents of the same kind."""
    parts = [sentences[start : start + 12] for start in range(0, 48, 12)]
    texts = [("\n".join(lines) + "\n").encode() for lines in parts]
    for form in ("JPEG", "BMP", "WEBP", "TIFF", "GIF", "PDF", "ICO", "PPM", "TGA"):
        yield pictures_as(pictures[:EACH], form)
    yield from packed(texts)
    yield [database(lines) for lines in parts]
    yield [sound(seed) for seed in range(EACH)]
    yield [pickle.dumps({"notes": lines, "count": len(lines)}) for lines in parts]
    yield [json.dumps({"notes": lines}, indent=1).encode() for lines in parts]
    for write in (page, mail, script, java, go, php, ruby, sql, table, marked_up):
        yield [write(lines).encode() for lines in parts]


def contents(sentences, pictures):
    """Contents of files: the first half of them is for calibration."""
    kinds = [kind for kind in (*found(), *made(sentences, pictures)) if len(kind) > 1]
    halves = [[content for kind in kinds for content in kind[part : len(kind) // 2 * 2 : 2]] for part in range(2)]
    return halves[0] + halves[1]
