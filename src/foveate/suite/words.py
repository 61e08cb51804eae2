"""How answers are brought to one form before they are compared: the official VQA normalisation, and a plainer one.

The VQA rules are those printed at visualqa.org/evaluation.html: lower case, no full stops but decimal points, number
words as digits, no articles, apostrophes where a contraction lacks one, and every other mark a space, except
apostrophes, colons and commas between digits.
"""

import re

ARTICLES = {"a", "an", "the"}
DIGITS = {
    word: str(number)
    for number, word in enumerate(
        ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
    )
} | {"none": "0"}
# Only those whose form without the apostrophe is no other word: not well, were, its, hell, shed, id, ill.
WHOLE = (
    "ain't aren't can't couldn't didn't doesn't don't hadn't hasn't haven't isn't mightn't mustn't needn't shan't "
    "shouldn't wasn't weren't won't wouldn't could've might've must've should've they've we've would've you've i've "
    "he's she's that's there's what's when's where's who's why's how's let's somebody's someone's they'd you'd it'll "
    "they'll that'll who'll you'll they're you're i'm o'clock ma'am y'all"
)
CONTRACTIONS = {whole.replace("'", ""): whole for whole in WHOLE.split()}


def plain(text: str) -> str:
    """Lower case, single spaces, nothing but words at either end."""
    return " ".join(text.lower().split()).strip(" .,;:!?\"'")


def vqa_form(text: str) -> str:
    """An answer in the normal form of the VQA evaluation."""
    text = " ".join(text.lower().split())
    text = re.sub(r"\.(?!\d)", "", text)  # a full stop, not a decimal point
    text = re.sub(r"(?<=\d),(?=\d)", "", text)  # 100,978 is 100978
    text = re.sub(r"[^\w\s':.]|_", " ", text)
    words = (DIGITS.get(word, word) for word in text.split() if word not in ARTICLES)
    return " ".join(CONTRACTIONS.get(word, word) for word in words)


def tokens(text: str) -> list[str]:
    """The words of a caption, lower case, without marks (captions are compared without Java's PTB tokenizer)."""
    return re.findall(r"\w+(?:['\u2019-]\w+)*", text.lower())
