"""How the sample gallery is drawn: a canvas, and one file each for objects, textures and scenes."""
