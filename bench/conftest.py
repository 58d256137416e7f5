"""The backend of Keras, before anything imports it."""

import os

os.environ["KERAS_BACKEND"] = "numpy"
