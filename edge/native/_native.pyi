import numpy as np
from numpy.typing import NDArray

def preprocess(image: NDArray[np.uint8], height: int, width: int, bgr: bool) -> NDArray[np.float32]: ...
