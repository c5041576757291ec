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

// Position in 0..size-1 that a mirrored image shows at any `position`: 1 0 | 0 1 2 ... size-1 | size-1 ...
ROTNET_HOST_DEVICE int mirror(int position, int size) {
  if (position >= 0 && position < size) return position;
  const int period = 2 * size;
  const int rest = position % period;
  const int folded = rest < 0 ? rest + period : rest;
  return folded < size ? folded : period - 1 - folded;
}

}  // namespace rotnet
