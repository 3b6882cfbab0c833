#!/usr/bin/env python3
"""Draws the sprites of the scenes: sprites.png (one RGBA atlas) and categories.json beside this file.

    python3 make_sprites.py [--font NotoColorEmoji.ttf] [--out FOLDER]

Both files are in the tree; run this only to change the categories (fonts-noto-color-emoji of Debian 12
and Pillow). The order is part of the data: held-out pairs and the first 48 categories depend on it, so
new ones go to the end.
"""
import argparse
import json
import pathlib

from PIL import Image, ImageDraw, ImageFont

# name | emoji | group | colour | what it can do (eat: one can eat it, fly: it can fly)
CATEGORIES = """
lion|🦁|animal|yellow|
elephant|🐘|animal|gray|
pig|🐷|animal|pink|
frog|🐸|animal|green|
panda|🐼|animal|white|
penguin|🐧|animal|black|
owl|🦉|animal|brown|fly
butterfly|🦋|animal|orange|fly
bee|🐝|animal|yellow|fly
octopus|🐙|animal|red|
turtle|🐢|animal|green|
crab|🦀|animal|red|
snail|🐌|animal|brown|
parrot|🦜|animal|green|fly
apple|🍎|fruit|red|eat
banana|🍌|fruit|yellow|eat
pear|🍐|fruit|green|eat
lemon|🍋|fruit|yellow|eat
strawberry|🍓|fruit|red|eat
pineapple|🍍|fruit|yellow|eat
watermelon|🍉|fruit|red|eat
pizza|🍕|food|yellow|eat
hamburger|🍔|food|brown|eat
donut|🍩|food|brown|eat
cake|🎂|food|white|eat
carrot|🥕|food|orange|eat
eggplant|🍆|food|purple|eat
car|🚗|vehicle|red|
bus|🚌|vehicle|blue|
bicycle|🚲|vehicle|blue|
train|🚆|vehicle|blue|
airplane|✈|vehicle|blue|fly
helicopter|🚁|vehicle|yellow|fly
rocket|🚀|vehicle|gray|fly
sailboat|⛵|vehicle|orange|
rose|🌹|plant|red|
sunflower|🌻|plant|yellow|
cactus|🌵|plant|green|
tree|🌳|plant|green|
umbrella|☂|object|purple|
key|🔑|object|yellow|
clock|⏰|object|red|
guitar|🎸|object|red|
drum|🥁|object|red|
ball|⚽|object|white|
heart|❤|object|red|
house|🏠|object|brown|
star|⭐|object|yellow|
dog|🐶|animal|brown|
cat|🐱|animal|yellow|
rabbit|🐰|animal|white|
fox|🦊|animal|orange|
monkey|🐵|animal|brown|
koala|🐨|animal|gray|
whale|🐳|animal|blue|
shark|🦈|animal|gray|
snake|🐍|animal|green|
spider|🕷|animal|gray|
ladybug|🐞|animal|red|fly
flamingo|🦩|animal|pink|fly
swan|🦢|animal|white|fly
bat|🦇|animal|brown|fly
peach|🍑|fruit|pink|eat
kiwi|🥝|fruit|green|eat
coconut|🥥|fruit|brown|eat
mango|🥭|fruit|orange|eat
melon|🍈|fruit|green|eat
tangerine|🍊|fruit|orange|eat
hotdog|🌭|food|orange|eat
taco|🌮|food|yellow|eat
croissant|🥐|food|orange|eat
pretzel|🥨|food|brown|eat
cookie|🍪|food|brown|eat
chili|🌶|food|red|eat
cucumber|🥒|food|green|eat
avocado|🥑|food|green|eat
truck|🚚|vehicle|orange|
tractor|🚜|vehicle|green|
motorcycle|🏍|vehicle|red|
ambulance|🚑|vehicle|white|
canoe|🛶|vehicle|brown|
scooter|🛵|vehicle|yellow|
sled|🛷|vehicle|red|
tulip|🌷|plant|pink|
clover|🍀|plant|green|
hibiscus|🌺|plant|pink|
seedling|🌱|plant|green|
lotus|🪷|plant|pink|
book|📘|object|blue|
hat|🎩|object|black|
camera|📷|object|black|
diamond|💎|object|blue|
purse|👛|object|pink|
snowman|⛄|object|white|
kite|🪁|object|orange|fly
robot|🤖|object|gray|
"""
# Where the plural is not the name and an s.
PLURALS = {
    "butterfly": "butterflies", "octopus": "octopuses", "strawberry": "strawberries", "bus": "buses",
    "cactus": "cactuses", "fox": "foxes", "peach": "peaches", "mango": "mangoes", "chili": "chilies",
    "hibiscus": "hibiscuses", "lotus": "lotuses", "snowman": "snowmen",
}
STRIKE = 109  # the only size of the font's bitmaps
SIDE = 136  # of a place in the atlas: bitmaps are 136 x 128 pixels
COLUMNS = 12
VISIBLE = 16  # alpha above which a pixel belongs to the sprite


def read_categories():
    rows = [line.split("|") for line in CATEGORIES.strip().splitlines()]
    return [{
        "name": name,
        "plural": PLURALS.get(name, name + "s"),
        "article": "an" if name[0] in "aeiou" else "a",
        "emoji": f"U+{ord(emoji):04X}",
        "group": group,
        "colour": colour,
        "edible": can == "eat",
        "flies": can == "fly",
        "alive": group in ("animal", "plant"),
    } for name, emoji, group, colour, can in rows]


def draw(font, codepoint):
    """The emoji, cropped to what is visible; fully clear pixels are black, for a small file."""
    canvas = Image.new("RGBA", (160, 160), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((8, 8), chr(codepoint), font=font, embedded_color=True)
    alpha = canvas.getchannel("A")
    box = alpha.point(lambda a: 255 if a > VISIBLE else 0).getbbox()
    if box is None:
        raise SystemExit(f"the font has no picture of U+{codepoint:04X}")
    clear = Image.new("RGBA", canvas.size, (0, 0, 0, 0))
    return Image.composite(canvas, clear, alpha.point(lambda a: 255 if a else 0)).crop(box)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--font", default="/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent)
    args = parser.parse_args()

    font = ImageFont.truetype(args.font, STRIKE)
    categories = read_categories()
    rows = -(-len(categories) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * SIDE, rows * SIDE), (0, 0, 0, 0))
    for index, category in enumerate(categories):
        sprite = draw(font, int(category["emoji"][2:], 16))
        x, y = index % COLUMNS * SIDE, index // COLUMNS * SIDE
        atlas.paste(sprite, (x, y))
        category["sprite"] = [x, y, *sprite.size]
    atlas.save(args.out / "sprites.png", optimize=True)
    lines = ",\n".join(" " + json.dumps(category) for category in categories)
    (args.out / "categories.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")


if __name__ == "__main__":
    main()
