"""The FLOPs that papers print, beside what their own formula gives and what the model really computes."""

from __future__ import annotations

from dataclasses import dataclass

from .flops import prefill
from .published import PaperShape, published
from .shapes import DecoderShape, VisionShape
from .tokens import Schedule, tokens_per_layer

SCIENCEQA_TEXT = 97  # mean system and text tokens of a ScienceQA prompt in LLaVA-1.5


def _llama(layers: int, hidden: int, ffn_width: int) -> DecoderShape:
    ffn, windows = (3 * hidden * ffn_width,) * layers, (None,) * layers
    return DecoderShape(hidden, hidden // 128, hidden // 128, 128, 32064, ffn_width, ffn, windows)


def _clip_336(text_hidden: int) -> VisionShape:
    """CLIP ViT-L/14 at 336 pixels and LLaVA-1.5's projector into a decoder of that width."""
    return VisionShape(
        hidden=1024,
        ffn=2 * 1024 * 4096,
        windows=(None,) * 24,
        patch=14,
        patch_inputs=3 * 14 * 14,
        class_token=True,
        pooling_head=0,
        merge=1,
        projector=1024 * text_hidden + text_hidden**2,
        projects_class_token=False,
        side=24,
    )


LLAVA_7B = _llama(layers=32, hidden=4096, ffn_width=11008)
LLAVA_13B = _llama(layers=40, hidden=5120, ffn_width=13824)
QWEN_VL_7B = PaperShape(layers=32, hidden=4096, ffn_width=11008)
QWEN2_VL_7B = PaperShape(layers=28, hidden=3584, ffn_width=18944)
INTERNVL25_8B = PaperShape(layers=32, hidden=4096, ffn_width=14336)
MOBILEVLM_V2_3B = PaperShape(layers=32, hidden=2560, ffn_width=6912)


@dataclass(frozen=True)
class Printed:
    """A FLOPs figure that a paper prints, and what its formula needs to give it again."""

    paper: str
    model: str
    method: str
    value: float  # in tera, in the paper's unit
    formula: str
    shape: PaperShape | DecoderShape
    visual: int
    schedule: Schedule = ()
    text: int = 0
    note: str = ""  # where printed and computed part, why

    @property
    def computed(self) -> float:
        """What the paper's formula gives, in tera."""
        return published(self.shape, self.visual, self.schedule, self.formula, self.text) / 1e12

    @property
    def exact(self) -> float | None:
        """TFLOPs of a LLaVA-1.5 prefill, everything counted, one image and 97 text tokens; None for other models."""
        if not isinstance(self.shape, DecoderShape):
            return None
        tokens = tokens_per_layer(self.shape.layers, self.visual + SCIENCEQA_TEXT, self.visual, self.schedule)
        return prefill(self.shape, tokens, vision=_clip_336(self.shape.hidden)).total / 1e12


def published_table() -> list[Printed]:
    """The printed figures of HiMAP, VisiPruner and VTW beside what their formulas give, discrepancies named."""
    small = ("LLaVA-1.5-7B", LLAVA_7B, 576)
    large = ("LLaVA-1.5-13B", LLAVA_13B, 576)
    qwen = ("QwenVL-7B", QWEN_VL_7B, 256)
    himap = [
        (small, "dense", 2.98, [], ""),
        (small, "FastV 2", 1.56, [(2, 288)], "The printed ratio of 54 % is that of K=3; K=2 gives 52.4 %."),
        (small, "HiMAP 2/8", 0.73, [(2, 288), (8, 72)], "The printed 24 % is of the image tokens' decoder cost alone."),
        (large, "dense", 5.81, [], ""),
        (large, "FastV 3", 3.09, [(3, 288)], ""),
        (large, "HiMAP 2/8", 1.36, [(2, 288), (8, 72)], "K1=2 is stated, but the printed value needs K1=3 (1.3645)."),
        (qwen, "dense", 3.6, [], _QWEN),
        (qwen, "FastV 2", 1.9, [(2, 128)], "As above; with 448 and 22016: 1.900."),
        (qwen, "HiMAP 2/8", 0.89, [(2, 128), (8, 32)], "As above; with 448 and 22016: 0.893."),
    ]
    visipruner = [
        (small, "dense", 3.82, [], ""),
        (small, "VisiPruner", 1.76, [(15, 10), (24, 0)], _AVERAGES),
        (large, "dense", 7.44, [], ""),
        (("MobileVLM-v2-3B", MOBILEVLM_V2_3B, 144), "dense", 0.37, [], ""),
        (("InternVL2.5-8B", INTERNVL25_8B, 1352), "dense", 11.0, [], _FITTED),
        (("Qwen2-VL-7B", QWEN2_VL_7B, 1300), "dense", 9.62, [], _FITTED),
    ]
    vtw = [
        (small, "dense", 8.48, [], "The prompt's length is not in the paper; 62 text tokens fit."),
        (small, "VTW 16", 4.68, [(16, 0)], "With 62 text tokens; the stated K=15 gives 4.40."),
    ]
    return [
        Printed(paper, model, method, value, formula, shape, visual, schedule, text, note)
        for paper, formula, text, rows in [
            ("HiMAP, Table 1", "himap", 0, himap),
            ("VisiPruner, Table 6", "visipruner", 0, visipruner),
            ("VTW, ScienceQA", "vtw", 62, vtw),
        ]
        for (model, shape, visual), method, value, schedule, note in rows
    ]


_QWEN = (
    "The printed value takes 448 tokens and an FFN of 22016 (3.600). The model makes 256 tokens of a picture of 448 "
    "pixels a side, and its FFN is 11008 wide (its config adds gate and up): printed 2.76 times too high."
)
_AVERAGES = (
    "The paper gives averages (10.3 tokens kept, exit at 23.9) and no filter layer; 15 fits. The printed value leaves "
    "out the attention of those 15 layers (1.767 without it)."
)
_FITTED = "The number of visual tokens is not in the paper; this one fits."
