"""A dictionary to look at: pictures, a movie, an HTML page."""

from solo_infoaug.viewer.page import show as show
