/**
 * The inodes of a mount: the folder, a file for each entry of the catalog, and the hidden `.vimgfs` with its status files.
 * A tree never changes: a new world has a new one (world.ts). The kernel may forget files whenever it likes.
 */
import type { CatalogEntry } from '../../image/catalog.js'
import type { Timestamp } from '../../io/file-spec.js'
import { ROOT_ID } from '../protocol/protocol.js'

export const CONTROL_DIR_ID = 2
const FIRST_CONTROL_FILE_ID = 3
export const FIRST_FILE_ID = 16
/** The number of the disk's file, unless an image that is only read was opened anew. */
export const DISK_ID = FIRST_FILE_ID
const CONTROL_DIR_NAME = '.vimgfs'
/** partitions.json is there with `-o partitions` only. */
export const CONTROL_FILES = ['stats.json', 'status.json', 'partitions.json'] as const
export type ControlFile = (typeof CONTROL_FILES)[number]

interface NodeBase {
  readonly id: number
  readonly name: string
  readonly parent: number
}
export interface DirNode extends NodeBase {
  readonly kind: 'dir'
  /** The ids that READDIR lists, in order. */
  readonly children: readonly number[]
}
export interface ImageNode extends NodeBase {
  readonly kind: 'image'
  readonly entry: CatalogEntry
  /** The index in the catalog. */
  readonly place: number
}
export interface ControlNode extends NodeBase {
  readonly kind: 'control'
  readonly file: ControlFile
}
export type Node = DirNode | ImageNode | ControlNode

/** How the mount shows its files. Plain data. */
export interface Appearance {
  readonly uid: number
  readonly gid: number
  /** Permission bits of the image files; no write bits. */
  readonly fileMode: number
  /** The same for each layer: the bits that all files have in common from which its bytes come. */
  readonly layerModes?: readonly number[]
  /** The same for the disk, which may have write bits. */
  readonly diskMode: number
  /** The same for each layer whose snapshots programs can write. */
  readonly writtenModes?: readonly number[] | undefined
  readonly dirMode: number
  /** The mtime of the folder. */
  readonly modified: Timestamp
}

export class Tree {
  private readonly nodes = new Map<number, Node>()
  /** The nodes by folder id and name. */
  private readonly names = new Map<string, Node>()
  /** The numbers of the files, by place in the catalog. */
  private readonly ids: readonly number[]
  /** The number of image files. */
  readonly fileCount: number
  /** The file of the disk itself; undefined only in tests. */
  readonly disk: ImageNode | undefined

  /** @param ids the numbers of the files, in the order of `entries` */
  constructor(
    entries: readonly CatalogEntry[],
    readonly appearance: Appearance,
    hasPartitions = false,
    ids: readonly number[] = entries.map((_, index) => FIRST_FILE_ID + index),
  ) {
    const files = entries.map((entry, index): ImageNode => {
      const id = ids[index] as number
      return { id, name: entry.name, parent: ROOT_ID, kind: 'image', entry, place: index }
    })
    this.ids = ids
    this.fileCount = files.length
    this.disk = files[0]
    const shown = CONTROL_FILES.filter(file => hasPartitions || file !== 'partitions.json')
    const controls = shown.map((file, index): ControlNode => {
      const id = FIRST_CONTROL_FILE_ID + index
      return { id, name: file, parent: CONTROL_DIR_ID, kind: 'control', file }
    })
    this.add({
      id: ROOT_ID,
      name: '',
      parent: ROOT_ID,
      kind: 'dir',
      children: files.map(f => f.id),
    })
    // Not listed, so that copying the folder copies only disks.
    this.add({
      id: CONTROL_DIR_ID,
      name: CONTROL_DIR_NAME,
      parent: ROOT_ID,
      kind: 'dir',
      children: controls.map(c => c.id),
    })
    for (const node of [...files, ...controls]) this.add(node)
  }

  node(id: number): Node | undefined {
    return this.nodes.get(id)
  }

  child(dir: number, name: string): Node | undefined {
    return this.names.get(`${dir}/${name}`)
  }

  /** Returns the nodes of the image files. */
  images(): ImageNode[] {
    return [...this.nodes.values()].filter(node => node.kind === 'image')
  }

  /** Returns all nodes by their paths from the mount's root, which is `/`. */
  paths(): Map<string, Node> {
    const pathOf = ({ id, name, parent }: Node): string =>
      id === ROOT_ID ? '' : `${pathOf(this.node(parent) as Node)}/${name}`
    return new Map([...this.nodes.values()].map(node => [pathOf(node) || '/', node]))
  }

  /** Returns the number of the file of the whole disk that `node` shows, or of which it shows a part. */
  wholeOf({ entry, id }: ImageNode): number {
    return entry.whole === undefined ? id : (this.ids[entry.whole] as number)
  }

  private add(node: Node): void {
    this.nodes.set(node.id, node)
    if (node.id !== ROOT_ID) this.names.set(`${node.parent}/${node.name}`, node)
  }
}
