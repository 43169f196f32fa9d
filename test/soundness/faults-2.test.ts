/** Errors from below, over half of the kinds of images: files run beside each other. */
import { openWritable } from '../support/writable.js'
import { faultSuite } from './fault-suite.js'
import { RECIPES } from './kinds.js'

faultSuite(
  RECIPES.filter(({ isHeavy }) => !isHeavy).filter((_, index) => index % 2 === 1),
  openWritable,
)
