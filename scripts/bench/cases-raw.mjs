/**
 * The cases of raw images, which the kernel reads itself (FUSE passthrough). The limit is the image file itself, read without any
 * server.
 */
import { readCases } from './cases.mjs'
import { plainRaw } from './images.mjs'

export const rawReadImages = {
  plain: {
    title: 'raw, incompressible',
    make: (place, { size }) => plainRaw(place, size),
  },
}

export const rawReadCases = readCases
  .filter(({ image }) => image === 'plain')
  .map(each => ({
    ...each,
    id: `raw-${each.id}`,
    targets: { raw: each.pattern === 'randread' ? 0.85 : 0.95 },
  }))
