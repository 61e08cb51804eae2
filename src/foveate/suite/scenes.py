"""Pictures drawn from a seed, with the list of what is in them.

A scene is a background (plain, gradient, noise or stripes) with one to six things that do not overlap: coloured
shapes, named pictograms and at most one short word or number. Training and held-out scenes come from different random
streams, and in training every pictogram avoids one ninth of the picture and one range of sizes (`stream` holds both
rules). This file knows nothing about questions.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

SIZE = 144  # pixels, both ways
SPLITS = ("train", "held-out")
COLOURS = {
    "red": (222, 36, 36),
    "orange": (250, 140, 16),
    "yellow": (250, 222, 40),
    "green": (36, 160, 62),
    "blue": (36, 92, 224),
    "purple": (140, 56, 190),
    "white": (252, 252, 252),
    "black": (14, 14, 16),
}
SHAPES = ("circle", "square", "triangle", "diamond", "star", "heart", "cross", "ring")
BACKGROUNDS = ("plain", "gradient", "noise", "stripes")
FONTS = ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono-Bold", "DejaVuSerif", "DejaVuSerif-Bold")
_WORDS = (
    "ACE ACT AGE AIR ALL ANT ARM ART BAD BAG BAR BAT BED BIG BIT BOX BOY BUS BUY CAB CAN CAP CAR CAT COW CRY CUP "
    "CUT DAY DIG DOG DRY EAR EAT EGG END EYE FAN FAR FIT FLY FOG FOX FUN GAS GET GO GUM GUY HAM HAT HEN HI HOP "
    "HOT HUG ICE INK JAM JET JOB JOY KEY KID LAB LEG LID LOG LOW MAP MEN MIX MUD NET NEW NO NUT OAK OIL OLD ON "
    "ONE OUT OWL PAN PEN PET PIG POP RAT RED RUN SAD SEA SKY SUN TAP TEA TEN TIE TOP TOY UP VAN WAX WAY WEB WIN "
    "YES ZIP ZOO BALL BANK BIRD BLUE BOOK CAKE CITY COLD DARK DOOR DUCK EAST EXIT FARM FAST FIRE FISH GOLD GOOD "
    "HAND HELP HOME JAZZ JUMP KING KIWI LAKE LEFT LOVE MOON NEWS NEXT OPEN PARK PLAY QUIT RAIN ROAD SALE SHOP "
    "SLOW SNOW STOP TAXI TIME TREE TURN WALK WEST WIND WOLF WORK YARD ZERO"
)
WORDS = tuple(_WORDS.split())


@dataclass(frozen=True)
class Thing:
    """One thing in a scene. `name` is the shape, the pictogram or the drawn text; pictograms have no `colour`.

    `box` and the boxes of `letters` (one per character of a text) are left, top, right, bottom in pixels.
    """

    kind: str  # "shape", "pictogram" or "text"
    name: str
    colour: str | None
    box: tuple[int, int, int, int]
    letters: tuple[tuple[str, tuple[int, int, int, int]], ...] = ()

    @property
    def centre(self) -> tuple[float, float]:
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@dataclass(frozen=True)
class Scene:
    """A drawn picture (RGB, 144 x 144) and the truth about it; `owner` (144, 144) is the thing at each pixel or -1."""

    picture: Image.Image
    things: tuple[Thing, ...]
    background: str
    owner: np.ndarray


@cache
def pictograms() -> dict[str, tuple[str, Image.Image]]:
    """Name -> (theme, RGBA sprite 64 x 64), from the sheet in this package."""
    folder = Path(__file__).parent / "pictograms"
    sheet = Image.open(folder / "sheet.png").convert("RGBA")
    found = {}
    for i, line in enumerate((folder / "names.txt").read_text().splitlines()):
        name, theme, _ = line.split()
        x, y = 64 * (i % 10), 64 * (i // 10)
        found[name] = (theme, sheet.crop((x, y, x + 64, y + 64)))
    return found


def popular_pictograms() -> list[str]:
    """The first three of every theme are drawn three times as often as the others."""
    by_theme: dict[str, list[str]] = {}
    for name, (theme, _) in pictograms().items():
        by_theme.setdefault(theme, []).append(name)
    return [name for names in by_theme.values() for name in names[:3]]


def stream(split: str, seed: int) -> tuple[np.random.Generator, bool]:
    """The random stream of a scene, and whether the withheld places and sizes of pictograms are open to it.

    This is the whole separation of training from held-out scenes: the two splits never share a random stream, and
    only held-out scenes put a pictogram into its withheld ninth of the picture or draw it at a withheld size
    (`withheld`). Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    return np.random.default_rng([SPLITS.index(split), seed]), split == "held-out"


def withheld(name: str, x: float, y: float, size: int) -> bool:
    """Whether training may not show this pictogram centred at (x, y) with this size in pixels."""
    ninth = 3 * min(2, int(3 * y / SIZE)) + min(2, int(3 * x / SIZE))
    return 40 <= size < 44 or ninth == (7 * list(pictograms()).index(name) + 3) % 9


def draw_scene(split: str, seed: int, most: int = 6, texts: float = 0.4, repeats: float = 0.35) -> Scene:
    """Draws scene `seed` of a split, with one to `most` things (fewer where one does not fit).

    A scene holds a text with the probability `texts`, and one name several times with the probability `repeats`.
    """
    rng, open_to_all = stream(split, seed)
    ground = _background(rng)
    return _composed(rng, ground, _cast(rng, int(rng.integers(1, most + 1)), texts, repeats), open_to_all)


def draw_page(split: str, seed: int) -> Scene:
    """A picture of two to eight texts and nothing else (fewer where one does not fit), to learn letters from."""
    rng, open_to_all = stream(split, seed)
    ground = _background(rng)
    return _composed(rng, ground, [("text", _string(rng), None) for _ in range(rng.integers(2, 9))], open_to_all)


def _composed(rng: np.random.Generator, ground, wanted: list[tuple[str, str, str | None]], open_to_all: bool) -> Scene:
    """Puts what is wanted, one after the other, where there is room on the ground."""
    background, canvas, tones = ground
    owner = np.full((SIZE, SIZE), -1, np.int8)
    things: list[Thing] = []
    for kind, name, colour in wanted:
        for _ in range(25):
            if kind == "shape":
                colour_now = colour or _visible_colour(rng, tones)
                mask = _shape(name, int(rng.integers(26, 58 if len(wanted) < 4 else 44)), rng.uniform(-18, 18))
                sprite, letters, drawn = _tinted(mask, _jitter(rng, COLOURS[colour_now])), (), name
            elif kind == "pictogram":
                size = int(rng.integers(28, 62 if len(wanted) < 4 else 48))
                sprite = pictograms()[name][1].resize((size, size), Image.Resampling.BILINEAR)
                if rng.random() < 0.5:
                    sprite = sprite.rotate(rng.uniform(-15, 15), Image.Resampling.BILINEAR)
                colour_now, letters, drawn = None, (), name
            else:
                colour_now = _visible_colour(rng, tones)
                sprite, letters = _text(name, rng, _jitter(rng, COLOURS[colour_now]))
                drawn = name
            width, height = sprite.size
            if width > SIZE - 4 or height > SIZE - 4:
                continue
            x, y = int(rng.integers(1, SIZE - width)), int(rng.integers(1, SIZE - height))
            if kind == "pictogram" and not open_to_all and withheld(name, x + width / 2, y + height / 2, width):
                continue
            if (owner[max(0, y - 1) : y + height + 1, max(0, x - 1) : x + width + 1] >= 0).any():
                continue
            canvas.paste(sprite, (x, y), sprite)
            solid = np.asarray(sprite.getchannel("A")) > 96
            if kind == "text":  # the word owns its line, gaps between strokes included
                solid = np.ones_like(solid)
            owner[y : y + height, x : x + width][solid] = len(things)
            shifted = tuple((c, (a + x, b + y, d + x, e + y)) for c, (a, b, d, e) in letters)
            things.append(Thing(kind, drawn, colour_now, (x, y, x + width, y + height), shifted))
            break
    return Scene(canvas, tuple(things), background, owner)


def _cast(rng: np.random.Generator, count: int, texts: float, repeats: float) -> list[tuple[str, str, str | None]]:
    """What a scene shall hold: (kind, name, colour or None for any)."""
    names = list(pictograms())
    popular = set(popular_pictograms())
    theme = pictograms()[names[rng.integers(len(names))]][0]
    kin = [name for name in names if pictograms()[name][0] == theme]

    def one() -> tuple[str, str, str | None]:
        if rng.random() < 0.5:
            return "shape", SHAPES[rng.integers(len(SHAPES))], None
        pool = kin if rng.random() < 0.6 else names
        weight = np.array([3.0 if name in popular else 1.0 for name in pool])
        return "pictogram", pool[rng.choice(len(pool), p=weight / weight.sum())], None

    text = [("text", _string(rng), None)] if rng.random() < texts else []
    if rng.random() < repeats and count > 1:
        alike = int(rng.integers(2, count + 1))
        chosen = one()
        return (text + [chosen] * alike + [one() for _ in range(count - alike - len(text))])[:count]
    return text + [one() for _ in range(count - len(text))]


def _string(rng: np.random.Generator) -> str:
    kind, length = rng.random(), int(rng.integers(2, 5))
    if kind < 0.35:
        return WORDS[rng.integers(len(WORDS))]
    if kind < 0.65:
        return "".join(rng.choice(list("0123456789"), length))
    return "".join(rng.choice(list("ABCDEFGHJKLMNPQRSTUVWXYZ"), length))  # no O and I: they are 0 and 1 out of a word


def _jitter(rng: np.random.Generator, colour: tuple[int, int, int]) -> tuple[int, int, int]:
    r, g, b = (int(np.clip(c + rng.integers(-12, 13), 0, 255)) for c in colour)
    return r, g, b


def _visible_colour(rng: np.random.Generator, tones: list[np.ndarray]) -> str:
    """A colour name that stands out from every tone of the background."""
    names = list(COLOURS)
    far = [n for n in names if all(np.linalg.norm(np.subtract(COLOURS[n], tone)) > 110 for tone in tones)]
    return far[rng.integers(len(far))] if far else names[rng.integers(len(names))]


def _background(rng: np.random.Generator) -> tuple[str, Image.Image, list[np.ndarray]]:
    """Kind, picture, and the tones that things must stand out from."""

    def tone(near: np.ndarray | None = None) -> np.ndarray:
        if near is not None:
            return np.clip(near + rng.integers(-45, 46, 3), 0, 255).astype(float)
        return np.clip(rng.integers(30, 236) + rng.integers(-40, 41, 3), 0, 255).astype(float)

    kind = BACKGROUNDS[rng.integers(len(BACKGROUNDS))]
    first = tone()
    second = tone(first) if kind != "plain" else first
    if kind == "plain":
        pixels = np.broadcast_to(first, (SIZE, SIZE, 3))
    elif kind == "noise":
        coarse = int(rng.integers(6, 40))
        small = Image.fromarray((rng.random((coarse, coarse)) * 255).astype(np.uint8))
        share = np.asarray(small.resize((SIZE, SIZE), Image.Resampling.BILINEAR))[..., None] / 255
        pixels = first + (second - first) * share + rng.normal(0, 5, (SIZE, SIZE, 1))
    else:
        angle = rng.uniform(0, np.pi)
        y, x = np.mgrid[:SIZE, :SIZE] / SIZE
        along = x * np.cos(angle) + y * np.sin(angle)
        if kind == "gradient":
            share = (along - along.min()) / np.ptp(along)
        else:
            share = np.clip(4 * np.sin(2 * np.pi * along * rng.uniform(3, 10)) + 0.5, 0, 1)
        pixels = first + (second - first) * share[..., None]
    return kind, Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), [first, second]


def _shape(name: str, size: int, turn: float) -> Image.Image:
    """An anti-aliased mask (mode L) of a shape, turned by `turn` degrees, cropped to what is visible."""
    s = 4 * size
    mask = Image.new("L", (s, s))
    pen = ImageDraw.Draw(mask)
    points = {
        "square": [(0.12, 0.12), (0.88, 0.12), (0.88, 0.88), (0.12, 0.88)],
        "triangle": [(0.5, 0.06), (0.97, 0.9), (0.03, 0.9)],
        "diamond": [(0.5, 0.0), (0.86, 0.5), (0.5, 1.0), (0.14, 0.5)],
        "star": [
            (0.5 + r * np.sin(np.pi * k / 5), 0.53 - r * np.cos(np.pi * k / 5))
            for k in range(10)
            for r in [0.5 if k % 2 == 0 else 0.2]
        ],
        "cross": [
            *[(0.35, 0.05), (0.65, 0.05), (0.65, 0.35), (0.95, 0.35), (0.95, 0.65), (0.65, 0.65)],
            *[(0.65, 0.95), (0.35, 0.95), (0.35, 0.65), (0.05, 0.65), (0.05, 0.35), (0.35, 0.35)],
        ],
        "heart": [
            (0.5 + 0.48 * np.sin(t) ** 3, 0.47 - 0.029 * (13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t)))
            for t in np.linspace(0, 2 * np.pi, 40)
        ],
    }
    if name == "circle":
        pen.ellipse((0.04 * s, 0.04 * s, 0.96 * s, 0.96 * s), fill=255)
    elif name == "ring":
        pen.ellipse((0.04 * s, 0.04 * s, 0.96 * s, 0.96 * s), fill=255)
        pen.ellipse((0.28 * s, 0.28 * s, 0.72 * s, 0.72 * s), fill=0)
    else:
        pen.polygon([(x * s, y * s) for x, y in points[name]], fill=255)
        mask = mask.rotate(turn, expand=True)
    mask = mask.resize((mask.width // 4, mask.height // 4), Image.Resampling.BOX)
    return mask.crop(mask.getbbox())


def _tinted(mask: Image.Image, colour: tuple[int, int, int]) -> Image.Image:
    sprite = Image.new("RGBA", mask.size, (*colour, 0))
    sprite.putalpha(mask)
    return sprite


@cache
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    from matplotlib import get_data_path  # only for the fonts that it ships

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"), size)


def _text(string: str, rng: np.random.Generator, colour: tuple[int, int, int]):
    """A sprite of the drawn string and the box of each character in it."""
    font = _font(FONTS[rng.integers(len(FONTS))], int(rng.integers(24, 41)))
    gap = int(rng.integers(0, 4))
    boxes, x = [], 2
    for character in string:
        left, top, right, bottom = font.getbbox(character)
        boxes.append((character, x - left, (x, int(top), x + int(right - left), int(bottom))))
        x += int(right - left) + 2 + gap
    low = min(top for _, _, (_, top, _, _) in boxes) - 2
    high = max(bottom for _, _, (_, _, _, bottom) in boxes) + 2
    mask = Image.new("L", (x, high - low))
    pen = ImageDraw.Draw(mask)
    for character, pen_x, _ in boxes:
        pen.text((pen_x, -low), character, fill=255, font=font)
    if rng.random() < 0.15:
        mask = mask.filter(ImageFilter.GaussianBlur(0.6))
    letters = tuple((c, (left, top - low, right, bottom - low)) for c, _, (left, top, right, bottom) in boxes)
    return _tinted(mask, colour), letters
