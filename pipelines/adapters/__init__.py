"""LoRAs and their relatives: read from files (`reading`), named as our layers (`names`), put on networks (`wardrobe`).

file -> layers by their names there -> pieces of our layers -> terms (`methods`, `terms`) -> hooks (`patch`)
"""
