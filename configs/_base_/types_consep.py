"""CoNSeP's types of nuclei, merged to four as in HoVer-Net's paper."""
types = dict(
    classes=('miscellaneous', 'inflammatory', 'epithelial', 'spindle-shaped'),
    palette=[(250, 190, 40), (60, 130, 230), (95, 220, 80), (230, 75, 60)])
