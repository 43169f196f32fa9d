/** Failing writes and syncs, over half of the kinds of images: test files run side by side. */
import { openWritable } from '../support/writable.js'
import { faultSuite } from './fault-suite.js'
import { RECIPES } from './kinds.js'

faultSuite(
  RECIPES.filter(({ isHeavy }) => !isHeavy).filter((_, index) => index % 2 === 1),
  openWritable,
)
