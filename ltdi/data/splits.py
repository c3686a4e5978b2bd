"""Class lists of the usual sets and few-shot splits; facts, embedded so that no file is needed."""

from __future__ import annotations

# Part -> its classes, sorted by code point.
Split = dict[str, tuple[str, ...]]


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _split(train: str, val: str, test: str) -> Split:
    parts = {"train": train, "val": val, "test": test}
    return {part: tuple(sorted(_names(text))) for part, text in parts.items()}


# In the order of their labels, as CIFAR100 below (Krizhevsky, 2009).
CIFAR10 = _names("airplane automobile bird cat deer dog frog horse ship truck")

# Parkhi et al., 2012; Gong et al., 2012; Li et al., 2017.
PETS = _names(
    """
    Abyssinian Bengal Birman Bombay British_Shorthair Egyptian_Mau Maine_Coon Persian Ragdoll
    Russian_Blue Siamese Sphynx american_bulldog american_pit_bull_terrier basset_hound beagle boxer
    chihuahua english_cocker_spaniel english_setter german_shorthaired great_pyrenees havanese
    japanese_chin keeshond leonberger miniature_pinscher newfoundland pomeranian pug saint_bernard
    samoyed scottish_terrier shiba_inu staffordshire_bull_terrier wheaten_terrier yorkshire_terrier
    """
)
OFFICE = _names("backpack bike calculator headphones keyboard laptop monitor mouse mug projector")
PACS = _names("dog elephant giraffe guitar horse house person")

# CIFAR-100: superclass -> its five classes.
_SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASSES = {name: _names(classes) for name, classes in _SUPERCLASSES.items()}
CIFAR100 = tuple(sorted(c for classes in SUPERCLASSES.values() for c in classes))


def _of_cifar100(val: str, test: str) -> Split:
    """The given classes; all others are for training."""
    return _split(" ".join(set(CIFAR100) - set(f"{val} {test}".split())), val, test)


# Bertinetto et al., 2019: 64 / 16 / 20 classes at random.
CIFAR_FS = _of_cifar100(
    """
    beaver beetle butterfly camel cattle crab crocodile flatfish lamp maple_tree motorcycle otter
    sea shark television tractor
    """,
    """
    baby bed bicycle chimpanzee fox leopard man pickup_truck plain poppy rocket rose snail
    sweet_pepper table telephone wardrobe whale woman worm
    """,
)

# Oreshkin et al., 2018: 12 / 4 / 4 whole superclasses.
_FC100_VAL = (
    "large_carnivores",
    "large_omnivores_and_herbivores",
    "non-insect_invertebrates",
    "small_mammals",
)
_FC100_TEST = ("aquatic_mammals", "insects", "medium_mammals", "people")
FC100 = _of_cifar100(
    *(" ".join(_SUPERCLASSES[name] for name in names) for names in (_FC100_VAL, _FC100_TEST))
)

# The classes of Tiny-ImageNet that are in each part of tiered-ImageNet (Ren et al., 2018): no
# high-level category of WordNet is in two parts.
TIERED = _split(
    """
    n01742172 n01855672 n02002724 n02056570 n02058221 n02094433 n02123045 n02123394 n02124075
    n02125311 n02129165 n02395406 n02403003 n02410509 n02415577 n02423022 n02437312 n02480495
    n02481823 n02486410 n02791270 n02793495 n02802426 n02837789 n02841315 n02843684 n02883205
    n02927161 n02950826 n02963159 n02988304 n03085013 n03089624 n03404251 n03424325 n03447447
    n03544143 n03584254 n03617480 n03637318 n03649909 n03662601 n03706229 n03770439 n03804744
    n03838899 n03854065 n03891332 n03902125 n03970156 n03980874 n04008634 n04023962 n04118538
    n04328186 n04356056 n04371430 n04376876 n04417672 n04507155 n04540053
    """,
    """
    n02099601 n02099712 n02666196 n02814533 n02977058 n03100240 n03179701 n03201208 n03444034
    n03670208 n03796401 n03977966 n03992509 n04067472 n04070727 n04099969 n04285008
    """,
    """
    n01443537 n02106662 n02165456 n02190166 n02206856 n02226429 n02231487 n02233338 n02236044
    n02268443 n02279972 n02281406 n02788148 n02795169 n02808440 n02815834 n02823428 n02909870
    n03160309 n03930313 n03937543 n03983396 n04398044 n04501370 n04560804 n04562935 n07579787
    n07583066 n07614500 n07615774 n07715103 n07720875 n07734744 n07747607 n07749582 n07753592
    n07768694 n07873807 n07875152 n07920052 n09193705 n09246464 n09256479 n09332890 n09428293
    """,
)

# The classes of Tiny-ImageNet that are in each part of mini-ImageNet (Ravi and Larochelle, 2017).
MINI = _split(
    """
    n01910747 n02074367 n02165456 n02795169 n02823428 n03400231 n03838899 n03854065 n04067472
    n04251144 n04275548 n04596742 n07747607 n09246464
    """,
    """
    n01855672 n02950826 n03584254 n03770439 n03980874 n09256479
    """,
    """
    n02099601 n02129165 n03544143 n04146614 n04149813
    """,
)
