"""What is made of the models that meet (sans-IO).

`rules`: mean, median, trimmed mean. `variance_correction`: for models that began apart. `composition`: which protocol bears which of these.
"""
