"""Questions about a scene, with answers that are true of it, in many wordings.

Every task is a function `(scene, rng) -> Question`, or None where the scene does not allow a well-defined question. Yes
and no are asked equally often, and a negative says of which kind it is (POPE's terms: random, popular, adversarial).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from foveate.suite.scenes import COLOURS, SHAPES, SIZE, Scene, Thing, pictograms, popular_pictograms

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
NEGATIVES = ("random", "popular", "adversarial")
MARGIN = 10  # pixels by which a thing must be off the middle line for its side to be asked


@dataclass(frozen=True)
class Question:
    """`answers` are all accepted, the first is the one taught; `negative` is the kind of a question answered no."""

    task: str
    question: str
    answers: tuple[str, ...]
    negative: str | None = None


def existence(scene: Scene, rng: np.random.Generator, negative: str | None = "any") -> Question | None:
    """Is a thing in the picture? `negative`: None asks for what is there, a kind for what is not, "any" tosses a coin.

    Negatives: random (any absent name), popular (an absent one of the names drawn most often), adversarial (absent, but
    a shape and a colour that are both there on different things, or a pictogram of a theme that is there).
    """
    if negative == "any":
        negative = None if rng.random() < 0.5 else NEGATIVES[rng.integers(3)]
    here = names_in(scene)
    coloured = {(t.colour, t.name) for t in scene.things if t.kind == "shape"}
    if negative is None:
        drawn = [t for t in scene.things if t.kind != "text"]
        if not drawn:
            return None
        thing = _pick(rng, drawn)
        phrase = f"{thing.colour} {thing.name}" if thing.kind == "shape" and rng.random() < 0.6 else thing.name
    elif negative == "random" and rng.random() < 0.3:
        pairs = [(c, s) for c in COLOURS for s in SHAPES if (c, s) not in coloured]
        phrase = " ".join(_pick(rng, pairs))
    elif negative == "random":
        pool = [n for n in (*SHAPES, *pictograms()) if n not in here]
        phrase = _pick(rng, pool)
    elif negative == "popular":
        pool = [n for n in (*SHAPES, *popular_pictograms()) if n not in here]
        phrase = _pick(rng, pool)
    else:
        colours, shapes = {c for c, _ in coloured if c}, {s for _, s in coloured}
        pairs = [f"{c} {s}" for c in sorted(colours) for s in sorted(shapes) if (c, s) not in coloured]
        pairs += [f"{c} {s}" for s in sorted(shapes) for c in COLOURS if (c, s) not in coloured and not pairs]
        themes = {pictograms()[t.name][0] for t in scene.things if t.kind == "pictogram"}
        kin = [n for n, (theme, _) in pictograms().items() if theme in themes and n not in here]
        pools = [pool for pool in (pairs, kin) if pool]
        if not pools:
            return None
        phrase = _pick(rng, _pick(rng, pools))
    forms = (
        "is there {a} in the picture?", "is there {a}?", "do you see {a}?", "can you see {a} in the image?",
        "does the picture show {a}?", "is {a} in the picture?",
    )  # fmt: skip
    text = _pick(rng, forms).format(a=a(phrase))
    return Question("existence", text, ("no",) if negative else ("yes",), negative)


def colour(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What colour is a shape (one of a kind) or the text?"""
    things = [t for t in only_ones(scene) if t.kind == "shape"] + [t for t in scene.things if t.kind == "text"]
    if not things:
        return None
    thing = _pick(rng, things)
    assert thing.colour is not None
    name = "text" if thing.kind == "text" else thing.name
    forms = ("what colour is the {n}?", "what color is the {n}?", "which colour does the {n} have?",
             "tell me the colour of the {n}.", "the {n} has which color?")  # fmt: skip
    return Question("colour", _pick(rng, forms).format(n=name), (thing.colour,))


def shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What shape has a colour that only one shape has?"""
    shapes = [t for t in scene.things if t.kind == "shape"]
    ones = [t for t in shapes if sum(o.colour == t.colour for o in shapes) == 1]
    if not ones:
        return None
    thing = _pick(rng, ones)
    forms = ("what shape is {c}?", "which shape is {c}?", "what is the {c} shape?", "name the shape that is {c}.")
    return Question("shape", _pick(rng, forms).format(c=thing.colour), (thing.name,))


def count(scene: Scene, rng: np.random.Generator) -> Question | None:
    """How many of one name, of one colour of shapes, of shapes, or of all things are there?"""
    drawn = [t for t in scene.things if t.kind != "text"]
    names = [t.name for t in drawn]
    repeated = sorted({n for n in names if names.count(n) > 1})
    dice = rng.random()
    if dice < 0.17 or not drawn:
        pool = [n for n in (*SHAPES, *pictograms()) if n not in names]
        phrase, number = plural(_pick(rng, pool)), 0
    elif dice < 0.62 and repeated:
        name = _pick(rng, repeated)
        phrase, number = plural(name), names.count(name)
    elif dice < 0.75:
        name = _pick(rng, names)
        phrase, number = plural(name), names.count(name)
    elif dice < 0.9:
        phrase, number = "shapes", sum(t.kind == "shape" for t in drawn)
    else:
        tone = _pick(rng, [t.colour for t in drawn if t.colour] or list(COLOURS))
        phrase, number = f"{tone} shapes", sum(t.colour == tone for t in drawn)
    forms = (
        "how many {p} are there?", "how many {p} are in the picture?", "count the {p}.",
        "how many {p} do you see?", "what is the number of {p}?",
    )  # fmt: skip
    return Question("count", _pick(rng, forms).format(p=phrase), (NUMBERS[number], str(number)))


def position(scene: Scene, rng: np.random.Generator) -> Question | None:
    """In which quarter, or on which side, is a thing that is one of a kind?"""
    things = only_ones(scene)
    x_clear = [t for t in things if abs(t.centre[0] - SIZE / 2) >= MARGIN]
    y_clear = [t for t in things if abs(t.centre[1] - SIZE / 2) >= MARGIN]
    both = [t for t in x_clear if t in y_clear]
    dice = rng.random()
    if dice < 0.6 and both:
        thing = _pick(rng, both)
        forms = ("where is the {n}?", "where do you see the {n}?", "in which corner is the {n}?",
                 "which part of the picture has the {n}?")  # fmt: skip
        return Question("position", _pick(rng, forms).format(n=label(thing)), (quarter(thing),))
    if dice < 0.8 and x_clear:
        thing = _pick(rng, x_clear)
        forms = ("is the {n} on the left or on the right?", "left or right: where is the {n}?")
        return Question("position", _pick(rng, forms).format(n=label(thing)), (quarter(thing).split()[1],))
    if y_clear:
        thing = _pick(rng, y_clear)
        forms = ("is the {n} at the top or at the bottom?", "top or bottom: where is the {n}?")
        return Question("position", _pick(rng, forms).format(n=label(thing)), (quarter(thing).split()[0],))
    return None


def relation(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Is one thing left of, right of, above or below another?"""
    things = only_ones(scene)
    pairs = [(p, q, axis) for p in things for q in things for axis in (0, 1) if q.centre[axis] - p.centre[axis] >= 20]
    if not pairs:
        return None
    first, second, axis = pairs[rng.integers(len(pairs))]  # first is left of, or above, second
    words = (("left of", "right of"), ("above", "below"))[axis]
    answer, way, swap = rng.random() < 0.5, int(rng.integers(2)), bool(rng.integers(2))
    if swap:
        first, second = second, first
    holds = words[int(swap)]
    said = holds if answer else words[1 - words.index(holds)]
    forms = ("is the {a} {w} the {b}?", "does the picture show the {a} {w} the {b}?")
    text = forms[way].format(a=label(first), b=label(second), w=said)
    return Question("relation", text, ("yes" if answer else "no",), None if answer else "swapped")


def name(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What is in a quarter of the picture that holds just one thing, clearly inside it?"""
    clear = [t for t in scene.things if all(abs(c - SIZE / 2) >= MARGIN for c in t.centre)]
    alone = [
        t for t in clear
        if t.kind != "text" and sum(quarter(o) == quarter(t) for o in scene.things) == 1
        and all(not _touches(o, quarter(t)) for o in scene.things if o is not t)
    ]  # fmt: skip
    if not alone:
        return None
    thing = _pick(rng, alone)
    forms = ("what is in the {q} corner?", "what is at the {q}?", "what do you see at the {q}?")
    full = f"{thing.colour} {thing.name}" if thing.colour else thing.name
    return Question("name", _pick(rng, forms).format(q=quarter(thing)), tuple(dict.fromkeys((full, thing.name))))


def read(scene: Scene, rng: np.random.Generator) -> Question | None:
    """What does the drawn word or number say?"""
    texts = [t for t in scene.things if t.kind == "text"]
    if len(texts) != 1:
        return None
    forms = ("what does it say?", "what does the text say?", "what is written?", "read the text.",
             "what is written in the picture?", "which text do you see?")  # fmt: skip
    return Question("read", _pick(rng, forms), (texts[0].name,))


def choice(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Which of four is right: what is in the picture, the colour of a shape, or a count?"""
    dice = rng.random()
    drawn = [t for t in scene.things if t.kind != "text"]
    ones = [t for t in only_ones(scene) if t.kind == "shape"]
    if dice < 0.6 and drawn:
        thing = _pick(rng, drawn)
        here = names_in(scene)
        pool = [*SHAPES, *pictograms()]
        if thing.kind == "shape" and rng.random() < 0.5 and len(set(SHAPES) - here) >= 3:
            pool = list(SHAPES)
        stem = _pick(rng, ("which of these is in the picture?", "what is in the picture?", "which one do you see?"))
        right, wrong = thing.name, [n for n in pool if n not in here]
    elif dice < 0.85 and ones:
        thing = _pick(rng, ones)
        stem = _pick(rng, (f"what colour is the {thing.name}?", f"which color has the {thing.name}?"))
        right, wrong = thing.colour, [c for c in COLOURS if c != thing.colour]
    elif drawn:
        thing = _pick(rng, drawn)
        number = sum(t.name == thing.name for t in drawn)
        stem = f"how many {plural(thing.name)} are there?"
        right, wrong = NUMBERS[number], [n for i, n in enumerate(NUMBERS) if i != number]
    else:
        return None
    at = int(rng.integers(4))
    options = [wrong[i] for i in rng.permutation(len(wrong))[:3]]
    options.insert(at, str(right))
    listed = " ".join(f"{letter}) {option}" for letter, option in zip("abcd", options, strict=True))
    return Question("choice", f"{stem} {listed}", ("abcd"[at], str(right)))


def describe(scene: Scene, rng: np.random.Generator) -> Question | None:
    """Everything in the picture, from left to right."""
    forms = ("describe the picture.", "what is in this picture?", "what does the image show?", "describe what you see.")
    return Question("describe", _pick(rng, forms), (caption(scene),))


TASKS: dict[str, Callable[[Scene, np.random.Generator], Question | None]] = {
    f.__name__: f for f in (existence, colour, shape, count, position, relation, name, read, choice, describe)
}


def ask(scene: Scene, rng: np.random.Generator, tasks: tuple[str, ...] = tuple(TASKS)) -> list[Question]:
    """One question of every task that the scene allows."""
    return [found for task in tasks if (found := TASKS[task](scene, rng)) is not None]


def caption(scene: Scene) -> str:
    """For example: a red circle, a dog and the text CAT."""
    parts = []
    for thing in sorted(scene.things, key=lambda t: t.centre):
        if thing.kind == "text":
            parts.append(f"the text {thing.name}")
        else:
            parts.append(a(f"{thing.colour} {thing.name}" if thing.colour else thing.name))
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else "nothing"


def names_in(scene: Scene) -> set[str]:
    """Names of the shapes and pictograms in a scene."""
    return {t.name for t in scene.things if t.kind != "text"}


def only_ones(scene: Scene) -> list[Thing]:
    """The shapes and pictograms whose name occurs once."""
    names = [t.name for t in scene.things if t.kind != "text"]
    return [t for t in scene.things if t.kind != "text" and names.count(t.name) == 1]


def quarter(thing: Thing) -> str:
    """top left, top right, bottom left or bottom right, by the centre of the thing."""
    x, y = thing.centre
    return f"{'top' if y < SIZE / 2 else 'bottom'} {'left' if x < SIZE / 2 else 'right'}"


def label(thing: Thing) -> str:
    return thing.name


def a(phrase: str) -> str:
    """The phrase with its article."""
    return phrase if phrase in ("grapes",) else f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(word: str) -> str:
    if word in ("grapes", "fish"):
        return word
    if word.endswith(("s", "x", "sh", "ch", "ss")):
        return word + "es"
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + "s"


def _touches(thing: Thing, corner: str) -> bool:
    left, top, right, bottom = thing.box
    across = left < SIZE / 2 if "left" in corner else right > SIZE / 2
    return across and (top < SIZE / 2 if "top" in corner else bottom > SIZE / 2)


def _pick(rng: np.random.Generator, options):
    return options[rng.integers(len(options))]
