/** qcow images, version 1 of QEMU's copy-on-write format; see header.ts. */
import { fixedBackingFile } from '../backing-file.js'
import type { Format } from '../format.js'
import { CRYPT, MAGIC } from '../qcow2/header.js'
import { QcowDriver } from './driver.js'
import {
  coverageBytes,
  type QcowHeader,
  readQcowHeader,
  tableBytes,
  filesNeededByQcow,
} from './header.js'
import { QcowWriter } from './writer.js'
import { unpackCluster } from '../packed-cluster.js'
import { oneFileChecking } from '../check/one-file.js'
import { tableWriterParts } from '../table-writer.js'

const checking = oneFileChecking(async () => ({
  check: (await import('./check.js')).checkQcow,
  repair: (await import('./repair.js')).repairQcow,
}))

export const qcowFormat: Format<QcowHeader> = {
  name: 'qcow',
  suffixes: ['.qcow'],
  unit: 'cluster',
  matches: head => head.length >= 8 && head.readUInt32BE(0) === MAGIC && head.readUInt32BE(4) === 1,
  open: (file, { storeOf }) => {
    const spec = readQcowHeader(storeOf(file))
    return spec.cryptMethod === CRYPT.aes ? { spec, encryption: { method: 'AES' } } : { spec }
  },
  sizeBytes: ({ spec }) => spec.sizeBytes,
  reference: ({ spec }) => fixedBackingFile(spec.backingName),
  filesNeeded: filesNeededByQcow,
  driver: ({ layer, store, dataStore, storeId, metadata, clusters }) =>
    new QcowDriver({ header: layer.spec, store, dataStore, storeId, metadata, clusters }),
  unpack: unpackCluster,
  writing: {
    hasTables: true,
    writer: parts => new QcowWriter(tableWriterParts(parts)),
  },
  creating: { load: async () => (await import('./create.js')).qcowCreator },
  checking,
  // QEMU shows no information specific to this format.
  describe: ({ spec }) => ({ unitBytes: 2 ** spec.clusterBits }),
  attributes: ({ spec }) => ({ 'cluster-size': String(2 ** spec.clusterBits) }),
  tableBytes: ({ spec }) => Math.ceil(spec.sizeBytes / coverageBytes(spec)) * tableBytes(spec),
  unitBytes: ({ clusterBits }) => 2 ** clusterBits,
}
