/** Power cuts over the other half of the kinds of encrypted qcow2 images: files run beside each other. */
import { BRIEF, cutSuite } from './cut-suite.js'
import { ENCRYPTED_RECIPES } from './encrypted-kinds.js'

cutSuite(
  ENCRYPTED_RECIPES.filter((_, index) => index % 2 === 1),
  BRIEF,
)
