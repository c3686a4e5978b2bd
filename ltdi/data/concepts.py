"""What classes are called, and which classes of two sets mean the same.

Transfer without labels is honest only where no source class is a target class under another name.
The rule is explicit: a source class goes when one of its words equals a word for a target class.
The words of a target class are its name and those that `ALSO` lists: synonyms, and source classes
whose images are nearly all images of the target class ("boy" for "person"). A kind of a target
class beside many others ("golden retriever" for "dog") stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ltdi.data.layout import readable

# Target class -> further words for it.
ALSO: dict[str, tuple[str, ...]] = {
    "airplane": ("aeroplane", "plane", "aircraft"),
    "automobile": ("car", "auto", "motorcar"),
    "baby": ("infant",),
    "backpack": ("back pack", "knapsack", "rucksack"),
    "bicycle": ("bike",),
    "bike": ("bicycle", "mountain bike"),
    "calculator": ("pocket calculator",),
    "cat": ("house cat", "domestic cat", "tabby", "tabby cat"),
    "dog": ("domestic dog",),
    "Egyptian Mau": ("Egyptian cat",),
    "elephant": ("African elephant", "Indian elephant"),
    "headphones": ("earphones", "headset"),
    "horse": ("pony",),
    "house": ("home",),
    "keyboard": ("computer keyboard", "keypad"),
    "laptop": ("notebook computer", "laptop computer"),
    "man": ("adult male",),
    "monitor": ("computer screen", "computer monitor"),
    "mouse": ("computer mouse",),
    "mug": ("cup", "coffee mug"),
    "Persian": ("Persian cat",),
    "person": ("man", "woman", "boy", "girl", "baby", "human"),
    "projector": ("slide projector",),
    "rocket": ("missile", "projectile"),
    "ship": ("vessel",),
    "sweet pepper": ("bell pepper",),
    "table": ("dining table",),
    "telephone": ("phone", "pay phone"),
    "truck": ("lorry", "motortruck", "pickup truck"),
    "wardrobe": ("closet",),
    "woman": ("adult female",),
}


@dataclass(frozen=True)
class Removal:
    """Why a source class is left out.

    Attributes:
        source: The source class, as it is called.
        target: The target class that it equals.
        dataset: The target set.
        word: The word that both have.
    """

    source: str
    target: str
    dataset: str
    word: str


def words_of(name: str) -> tuple[str, ...]:
    """The words for a class: "goldfish, Carassius auratus" has two, "sweet_pepper" has one."""
    parts = (readable(part) for part in name.split(","))
    return tuple(dict.fromkeys(part for part in parts if part))


def key(word: str) -> str:
    """What two spellings of one word share."""
    return " ".join(word.lower().replace("-", " ").replace("_", " ").split())


def find_equal(source: Sequence[str], targets: Mapping[str, Sequence[str]]) -> dict[int, Removal]:
    """The source classes that equal a target class: index -> why.

    Args:
        source: Names, with synonyms after commas.
        targets: Target set -> the names of its classes.
    """
    also = {key(name): words for name, words in ALSO.items()}
    known: dict[str, tuple[str, str]] = {}
    for dataset, names in targets.items():
        for name in names:
            for word in words_of(name):
                for each in (word, *also.get(key(word), ())):
                    known.setdefault(key(each), (dataset, word))
    out = {}
    for index, name in enumerate(source):
        for word in words_of(name):
            if key(word) in known:
                dataset, target = known[key(word)]
                out[index] = Removal(words_of(name)[0], target, dataset, word)
                break
    return out


def concepts(names: Sequence[str], words: int = 3) -> list[int]:
    """A number for each class; classes that share one of their first words share the number.

    CIFAR-100 and Tiny-ImageNet both have a "bee": both must be on one side of a split.
    """
    seen: dict[str, int] = {}
    out: list[int] = []
    for index, name in enumerate(names):
        keys = [key(word) for word in words_of(name)[:words]]
        number = next((seen[k] for k in keys if k in seen), index)
        for k in keys:
            seen.setdefault(k, number)
        out.append(number)
    return out
