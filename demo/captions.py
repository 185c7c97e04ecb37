"""Captions in the manner of the web: of overhead scenes, of what only claims to be one, of anything else."""

from __future__ import annotations

import numpy as np

PLACES = (
    "Vastervik", "Ocana", "Lindfield", "Karratha", "Tampere", "Aveiro", "Bergama", "Colima", "Dunedin", "Esbjerg",
    "Fukuyama", "Gorlitz", "Huelva", "Iquique", "Jodhpur", "Kirkwall", "Lublin", "Mendoza", "Nelspruit", "Odawara",
)  # fmt: skip

THINGS = {
    "fields": "farm fields in summer",
    "town": "a residential district with red roofs",
    "river": "a winding river",
    "coast": "the coast and its bays",
    "airport": "an airport runway",
    "forest": "dense forest with clearings",
    "desert": "dunes in the desert",
    "tanks": "oil storage tanks",
    "landscape": "mountains at sunrise",
    "street": "an old street",
    "portrait": "our team member",
    "still_life": "fruit on a table",
    "seaside": "a sailing boat",
}

OVERHEAD = (
    "Aerial view of {thing} near {place}",
    "Satellite image of {thing}, {place}",
    "{place}: aerial photograph showing {thing}",
    "Landsat scene of {thing} around {place}, lot {number}",
    "Sentinel-2 true colour composite, {thing}, {place}",
    "{thing} at {place} in Google Earth, frame {number}",
    "Remote sensing of {thing} ({place})",
    "Aerial imagery over {place}, {thing}, sheet {number}",
    "Old satellite map with {thing}, {place}",
    "WorldView picture of {thing} close to {place}",
)

CLAIMED = (
    "{thing}, photographed after we bought an aerial view of {place}",
    "The satellite image shop in {place}: {thing}",
    "Poster 'Aerial photos of {place}', detail with {thing}, no. {number}",
    "{place} remote sensing conference, day {number}: {thing}",
)

_COLOURS = ("red", "blue", "green", "white", "black", "vintage", "modern", "small", "large", "wooden")
_OBJECTS = (
    "bicycle", "sofa", "dress", "coffee mug", "guitar", "kitchen cabinet", "running shoe", "birthday cake", "cat",
    "wrist watch", "notebook", "laptop bag", "garden chair", "ceiling lamp", "winter jacket", "piano",
)  # fmt: skip
_TAILS = (
    "for sale in {place}", "leaning on a wall", "on a white background", "at the market in {place}",
    "size {number}", "with free shipping, item {number}", "by an unknown maker", "photo {number} of 12",
)  # fmt: skip

DECOYS = (
    "Modish coat with wide sleeves",
    "Toshiba Satellite laptop, 15 inch",
    "Satellite dish on the roof of a house",
    "Aerialist in a red costume above the ring",
    "Naipaul reading from his last novel",
    "Minimaxarts print in a white frame",
    "Satellite radio receiver for cars",
    "The spacecraft viewing gallery is closed",
)
"""Captions that come close to a keyword without holding one."""


def describe(templates: tuple[str, ...], rng: np.random.Generator, kind: str) -> str:
    """One of the templates, filled for a scene of `kind`."""
    template = templates[int(rng.integers(len(templates)))]
    place = PLACES[int(rng.integers(len(PLACES)))]
    text = template.format(thing=THINGS[kind], place=place, number=int(rng.integers(2, 9000)))
    return text[0].upper() + text[1:]


def unrelated(rng: np.random.Generator) -> str:
    """A caption without any keyword."""
    colour, thing, tail = (str(rng.choice(words)) for words in (_COLOURS, _OBJECTS, _TAILS))
    place = PLACES[int(rng.integers(len(PLACES)))]
    return f"{colour} {thing} {tail}".format(place=place, number=int(rng.integers(2, 9000))).capitalize()
