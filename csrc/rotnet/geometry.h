// The index maps: view -> upright crop -> stored image.
#pragma once

#include "augment.h"
#include "macros.h"

namespace rotnet {

struct Position {
  int row;
  int column;
};

// Pixel of the upright crop [height, width] that appears at (row, column) of the view turned by
// `turn` quarter turns counter-clockwise; equals numpy.rot90. Odd turns need height == width.
ROTNET_HOST_DEVICE Position unrotate(int turn, int row, int column, int height, int width) {
  switch (turn) {
    case 1:
      return {column, width - 1 - row};
    case 2:
      return {height - 1 - row, width - 1 - column};
    case 3:
      return {height - 1 - column, row};
    default:
      return {row, column};
  }
}

// Pixel of the stored image behind (row, column) of the upright crop. It may lie outside the image:
// that is the black border.
ROTNET_HOST_DEVICE Position uncrop(const Augmentation& draw, int pad, int row, int column, int width) {
  const int unflipped = draw.flip ? width - 1 - column : column;
  return {row + draw.top - pad, unflipped + draw.left - pad};
}

}  // namespace rotnet
