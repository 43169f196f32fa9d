/** A raw image: the file is the disk. */
import type { Format } from '../format.js'
import { mappingWithHoles } from '../mapping.js'
import { RawDriver } from './driver.js'
import { luksContainer } from './luks-container.js'
import { ProbedRawWriter } from './probed-writer.js'
import { RawWriter } from './writer.js'

/** Raw remains if no other format matches, so it is the registry's last row. */
export const rawFormat: Format<undefined> = {
  name: 'raw',
  suffixes: [],
  unit: 'sector',
  matches: () => true,
  open: () => ({ spec: undefined }),
  sizeBytes: ({ sizeBytes }) => sizeBytes,
  driver: ({ store }) => new RawDriver(store),
  mapping: () => mappingWithHoles(() => 'zero'),
  writing: {
    hasTables: false,
    allowsUnseenWrites: true,
    writer: ({ store, layer, probedName, refusals }) =>
      layer.isProbed ? new ProbedRawWriter(store, probedName, refusals) : new RawWriter(store),
  },
  resizing: { load: async () => (await import('./resize.js')).rawResizer },
  creating: { load: async () => (await import('./create.js')).rawCreator },
  describe: (_, { store }) => ({ unitBytes: undefined, specific: luksContainer(store) }),
  tableBytes: () => 0,
  unitBytes: () => 1,
}
