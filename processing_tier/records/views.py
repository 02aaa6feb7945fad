"""Views (projections) of radiographs: from the words of any table to `AP`, `PA`, `LATERAL` or `OTHER`."""

import re
import unicodedata
from typing import Any

import pandas as pd

FRONTAL_VIEWS = ("AP", "PA")

VIEWS = (*FRONTAL_VIEWS, "LATERAL", "OTHER")

# The first known word decides, so that "AP LLD" and "AP AXIAL" are AP
WORDS = {
    **dict.fromkeys("pa posteroanterior posteroanterieur posteroanteriore dorsoventral".split(), "PA"),
    **dict.fromkeys("ap anteroposterior anteroposterieur anteroposteriore ventrodorsal".split(), "AP"),
    **dict.fromkeys("lateral lat latl ll rl l perfil profil seitlich lateralis laterolateral".split(), "LATERAL"),
    **dict.fromkeys("frontal frente face".split(), "PA"),
}

EXACT = {"l"}  # a view if it stands alone, a side beside other words

IGNORED = frozenset("chest cxr xr x ray xray thorax torax view vista projection proyeccion projecao dx cr".split())

SIDES = frozenset("left right erect supine upright portable standing sitting semi".split())

COMPOUND = re.compile(r"\b(p|postero|posterior|a|antero|anterior)[\s./_-]*(a|p|anterior|posterior|ant|post)\b")


def normalize_view(value: Any) -> str:
    """
    A view in the words of the schema; "postero-anterior" is `PA` and `AP_horizontal` is `AP`. `FRONTAL` alone becomes
    `PA`, the usual projection, so that a filter on frontal views keeps it. Blanks, unknown words, and names of a
    frontal and a lateral view together ("PA and lateral") become `OTHER`.
    """
    if value is None or not isinstance(value, str) and pd.isna(value):
        return "OTHER"
    text = unicodedata.normalize("NFKD", str(value)).casefold()
    text = "".join(character for character in text if not unicodedata.combining(character))
    text = COMPOUND.sub(lambda match: match[1][0] + match[2][0], text)
    words = [word for word in re.findall(r"[a-z]+", text) if word not in IGNORED]
    if not words:
        return "OTHER"
    if len(words) > 1:
        words = [word for word in words if word not in EXACT]
    known = [WORDS[word] for word in words if word in WORDS]
    first = next((word for word in words if word not in SIDES), None)
    if not known or first not in WORDS or "LATERAL" in known and len(set(known)) > 1:
        return "OTHER"
    if "decubitus" in words and known[0] == "LATERAL":  # the patient's position; the view is frontal or oblique
        return "OTHER"
    return known[0]
