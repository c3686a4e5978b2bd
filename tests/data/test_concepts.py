"""`ltdi.data.concepts`: no source class is a target class under another name."""

from __future__ import annotations

from ltdi.data import splits
from ltdi.data.concepts import ALSO, concepts, find_equal, key, words_of
from ltdi.data.transfer import target_names


def test_words_are_the_parts_between_commas() -> None:
    assert words_of("goldfish, Carassius auratus") == ("goldfish", "Carassius auratus")
    assert words_of("sweet_pepper") == ("sweet pepper",)


def test_spelling_does_not_matter() -> None:
    assert key("Pay-Phone") == key("pay phone") == key("pay_phone")


def test_exactly_these_classes_of_cifar100_equal_a_target() -> None:
    found = find_equal(splits.CIFAR100, target_names())
    named = {splits.CIFAR100[i] for i in found}
    assert named == {
        *splits.CIFAR_FS["test"],
        *("boy", "cup", "elephant", "girl", "house", "keyboard", "mouse"),
    }


def test_synonyms_and_other_names_are_found_and_kinds_stay() -> None:
    source = [
        "tabby, tabby cat",
        "African elephant, Loxodonta africana",
        "bell pepper",
        "pay-phone, pay-station",
        "projectile, missile",
        "computer keyboard, keypad",
        "Egyptian cat",
        "Yorkshire terrier",
        "golden retriever",
        "sports car, sport car",
        "goldfish, Carassius auratus",
    ]
    found = find_equal(source, target_names())
    assert sorted(found) == list(range(8))
    assert found[0].target == "cat" and found[0].dataset == "cifar10"
    assert found[6].target == "Egyptian Mau"


def test_every_further_word_is_of_a_target_class() -> None:
    known = {key(n) for names in target_names().values() for n in names}
    assert {key(name) for name in ALSO} <= known


def test_classes_that_share_a_word_are_one_concept() -> None:
    numbers = concepts(["bee", "orange", "wasp", "bee", "lion, king of beasts", "lion"])
    assert numbers == [0, 1, 2, 0, 4, 4]
