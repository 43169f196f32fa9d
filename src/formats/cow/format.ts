/** cow images of User-mode Linux and of QEMU up to 2.1; see header.ts. */
import { fixedBackingFile } from '../backing-file.js'
import type { Format } from '../format.js'
import { CowDriver } from './driver.js'
import { type CowHeader, cowNameAt, readCowHeader } from './header.js'
import { CowWriter } from './writer.js'
import { MAX_FILE_NAME_BYTES } from '../limits.js'
import { oneFileChecking } from '../check/one-file.js'
import { tableWriterParts } from '../table-writer.js'

const MAGICS = ['OOOM', 'MOOO']

const isCow = (head: Buffer): boolean => MAGICS.includes(head.toString('latin1', 0, 4))

const isUml = ({ layout }: CowHeader): boolean => layout.startsWith('uml')

const checking = oneFileChecking(async () => ({
  check: (await import('./check.js')).checkCow,
  repair: (await import('./repair.js')).repairCow,
}))

export const cowFormat: Format<CowHeader> = {
  name: 'cow',
  suffixes: ['.cow'],
  unit: 'sector',
  // Version 1 has the byte order of the host that wrote it.
  matches: isCow,
  open: (file, { storeOf, warn }) => {
    const spec = readCowHeader(storeOf(file))
    for (const warning of spec.warnings) warn(`${file.path}: ${warning}`)
    return { spec }
  },
  sizeBytes: ({ spec }) => spec.sizeBytes,
  // User-mode Linux knows no other format.
  reference: ({ spec }) => fixedBackingFile(spec.backingName, isUml(spec) ? 'raw' : undefined),
  filesNeeded: (head, read) => (isCow(head) ? [read(cowNameAt(head), MAX_FILE_NAME_BYTES)] : []),
  checkBelow: ({ path, spec }, { modified, path: below }, { warn }) => {
    // User-mode Linux refuses a backing file that has been written since; QEMU did not look.
    if (!isUml(spec) || spec.backingSeconds === modified.seconds) return
    warn(
      `${path}: its backing file ${below} has another time of its last change than the image says; if it was written since, this disk may read as nonsense`,
    )
  },
  driver: ({ layer, store, storeId, metadata, isWritten }) =>
    new CowDriver({ header: layer.spec, store, storeId, metadata, isWritten }),
  writing: {
    hasTables: true,
    writer: parts => new CowWriter(tableWriterParts(parts)),
  },
  creating: { load: async () => (await import('./create.js')).cowCreator },
  checking,
  describe: ({ spec }) => ({
    unitBytes: spec.sectorBytes,
    specific: {
      type: 'cow',
      data: {
        layout: spec.layout,
        'backing-mtime': spec.backingName === undefined ? undefined : spec.backingSeconds,
      },
    },
  }),
  attributes: ({ spec }) => ({ 'format-layout': spec.layout }),
  tableBytes: ({ spec }) => spec.bitmapBytes,
  unitBytes: () => 1,
}
