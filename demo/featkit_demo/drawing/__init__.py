"""The drawing code of the sample gallery: a canvas, objects, creatures, textures and scenes."""
