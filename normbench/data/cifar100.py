"""CIFAR-100 (Krizhevsky 2009): 60,000 colour images of a hundred kinds of things, 32×32."""

from __future__ import annotations

from typing import ClassVar

from normbench.data.checksums import CIFAR100_PACKINGS
from normbench.data.cifar10 import CIFAR10

# The names in the order of their labels. Pickled as Python 2 did, these two lists have the
# published checksum of the file `meta` (a test does it).
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
    butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab
    crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard
    lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom
    oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
    possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake
    spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor
    train trout tulip turtle wardrobe whale willow_tree wolf woman worm
"""
_COARSE = """
    aquatic_mammals fish flowers food_containers fruit_and_vegetables household_electrical_devices
    household_furniture insects large_carnivores large_man-made_outdoor_things
    large_natural_outdoor_scenes large_omnivores_and_herbivores medium_mammals
    non-insect_invertebrates people reptiles small_mammals trees vehicles_1 vehicles_2
"""
FINE = tuple(_FINE.split())
COARSE = tuple(_COARSE.split())


class CIFAR100(CIFAR10):
    """CIFAR-100, fine labels: https://www.cs.toronto.edu/~kriz/cifar.html. Files as CIFAR-10's."""

    name = "cifar100"
    title = "CIFAR-100"
    classes = 100
    class_names = FINE
    label_names: ClassVar = {"label": FINE, "coarse_label": COARSE}
    packings = CIFAR100_PACKINGS
