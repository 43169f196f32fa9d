/** Images that vimgfs makes for itself, as qemu-img sees them. */
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { writeBlank } from '../../src/formats/qcow2/blank.js'
import { readHeader } from '../../src/formats/qcow2/header.js'
import { needs, run, tempFolder } from '../support/run.js'
import { MemoryStore } from '../support/stores.js'
import { qemuImg } from './qemu.js'

const SIZE = 33 * 2 ** 30

const MODELS = {
  'compat=0.10': { clusterBytes: 4096 },
  'compat=1.1': { clusterBytes: 4096 },
  'refcount_bits=1': { clusterBytes: 4096 },
  'refcount_bits=64': { clusterBytes: 4096 },
  'extended_l2=on': { clusterBytes: 16384 },
}

for (const [options, { clusterBytes }] of Object.entries(MODELS)) {
  t.test(options, needs('qemu-img'), async t => {
    const folder = tempFolder(t)
    const model = join(folder, 'model.qcow2')
    await qemuImg('create', '-q', '-f', 'qcow2', '-o', options, model, '1M')
    const store = new MemoryStore('blank')
    writeBlank(store, readHeader(new MemoryStore(model, readFileSync(model))), SIZE)
    const blank = join(folder, 'blank.qcow2')
    writeFileSync(blank, store.bytes())
    await run('qemu-img', ['check', '-q', '-f', 'qcow2', blank])
    const seen = JSON.parse(await qemuImg('info', '--output=json', blank))
    const made = JSON.parse(await qemuImg('info', '--output=json', model))
    t.equal(seen['virtual-size'], SIZE)
    t.equal(seen['cluster-size'], clusterBytes)
    const { data } = seen['format-specific']
    const { compat, 'refcount-bits': bits, 'extended-l2': isExtended } = data
    t.match(made['format-specific'].data, { compat, 'refcount-bits': bits })
    t.equal(isExtended, made['format-specific'].data['extended-l2'])
  })
}
